"""What a report says of known faults: which explain a candidate, and how many would have shown."""

from sdpo.runtime.json_values import Count, Positive, Row


class Explanation(Row, frozen=True):
    """A known fault that gives the candidate's results.

    `explains` counts diverging cases, of a trainer diverging scenarios; one with `also` explains
    less than a quarter of what the first one explains.
    """

    fault: str
    explains: Count
    of: Count
    also: bool
    cases: list[str]

    @property
    def share(self) -> str:
        """Say how many cases it explains: `39 of 40`."""
        return f"{self.explains} of {self.of}"


class ExplanationSearch(Row, frozen=True):
    """How far known faults were searched for an explanation."""

    faults: Count
    pairs: Count
    pairs_tried: Count


class Certificate(Row, frozen=True):
    """How many known faults of the loss the cases show at the stages of the candidate."""

    tested: Count
    killed: Count
    survivors: list[str]


class OneDtypeOnly(Row, frozen=True):
    """The one dtype of the loss cases in which the candidate departs, before any declaration.

    Cases of the same kind in another dtype hold.
    """

    dtype: str
    cases: Positive
    of: Positive
    holds: dict[str, Positive]
