"""Statuses of comparisons, verdicts of runs, and the exit codes that follow. Imports no torch."""

from collections.abc import Iterable
from enum import StrEnum


class Status(StrEnum):
    """How a value, a case or a stage compares with the reference; the gravest comes last."""

    NOT_COVERED = "NOT_COVERED"
    MATCH = "MATCH"
    PASS = "PASS"
    DECLARED = "DECLARED"
    DIVERGENT = "DIVERGENT"
    ERROR = "ERROR"


SEVERITY = tuple(Status)
FAILING = (Status.DIVERGENT, Status.ERROR)
FINITE = "finite_where_reference_is_not"
"""The effect of a finite value where the reference has none."""


class Verdict(StrEnum):
    """What the statuses of all stages come to under a policy."""

    PASS = "PASS"
    DECLARED = "DECLARED"
    INCONCLUSIVE = "INCONCLUSIVE"
    DIVERGENT = "DIVERGENT"
    ERROR = "ERROR"

    @property
    def exit_code(self) -> int:
        """The exit code of the command line."""
        return EXIT_CODES[self]


class RelationStatus(StrEnum):
    """What became of a metamorphic relation; `INHERITED` is a violation of the reference's too."""

    HOLDS = "HOLDS"
    VIOLATED = "VIOLATED"
    INHERITED = "INHERITED"
    ERROR = "ERROR"
    NOT_COVERED = "NOT_COVERED"


EXIT_CODES = {
    Verdict.PASS: 0,
    Verdict.DECLARED: 0,
    Verdict.DIVERGENT: 1,
    Verdict.ERROR: 2,
    Verdict.INCONCLUSIVE: 3,
}
EXIT_ORDER = (4, 2, 1, 3, 0)


def worst_status(statuses: Iterable[Status]) -> Status:
    """The most severe of some statuses; NOT_COVERED of none."""
    return max(statuses, key=SEVERITY.index, default=Status.NOT_COVERED)


def worst_exit_code(codes: Iterable[int]) -> int:
    """One exit code for several candidates: the worst in the order 4, 2, 1, 3, 0."""
    return min(codes, key=EXIT_ORDER.index)
