"""What a report says of known faults: which explain a candidate, and how many would have shown."""

from sdpo.runtime.json_values import Count, Number, Positive, Row


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


class ConditionalFaults(Row, frozen=True):
    """How many faults under one condition alone the compared cases show, in loss or gradient.

    `tested` counts pairs of a known fault and one of `conditions` conditions; `least` says of the
    conditions under which not all faults show how many do, the worst first.
    """

    tested: Count
    killed: Count
    conditions: Count
    least: dict[str, str]


class Certificate(Row, frozen=True):
    """How many known faults of the loss the cases show at the stages of the candidate.

    `conditional` is null where it is not known for the cases that were compared.
    """

    tested: Count
    killed: Count
    survivors: list[str]
    conditional: ConditionalFaults | None = None


class MostlyWhere(Row, frozen=True):
    """Conditions that most failing cases fulfil and few holding ones, with how many of each."""

    conditions: str
    failing: Positive
    holding: Count


class Diagnosis(Row, frozen=True):
    """What the loss cases in which a candidate departs have in common, and how much it matters.

    Attributes:
        failing: cases in which it departs, of `compared`.
        compared: cases in which it was compared.
        only_where: a condition that all failing cases fulfil and no other; empty if there is none.
        shared: conditions that all failing cases fulfil, with how many of the others do, where
            those are less than half.
        gradient_ratio: the candidate's norm of the gradient ÷ the reference's, the median.
        gradient_cosine: cosine between the two gradients, the lowest.
        relative: the largest difference of loss or gradient ÷ the reference's value, in the norm.
        smallest: the failing case that fulfils the fewest conditions, then the smallest of those.
        settings: what is special about that case, in words.
        actual: the candidate's loss there.
        expected: the reference's loss there.
        mostly: where most of the failing cases lie and few others, if no condition is all theirs.
    """

    failing: Positive
    compared: Positive
    only_where: str
    shared: dict[str, Count]
    gradient_ratio: Number | None
    gradient_cosine: Number | None
    relative: Number | None
    smallest: str
    settings: str
    actual: Number | None
    expected: Number | None
    mostly: MostlyWhere | None = None


class OneDtypeOnly(Row, frozen=True):
    """The one dtype of the loss cases in which the candidate departs, before any declaration.

    Cases of the same kind in another dtype hold.
    """

    dtype: str
    cases: Positive
    of: Positive
    holds: dict[str, Positive]
