"""The numbers behind the plots, without any drawing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sdpo.parity.cases.stages import STAGES
from sdpo.parity.compare.statuses import Status
from sdpo.parity.report.report_rows import CaseFigures
from sdpo.parity.report.run_report import RunReport

_FAMILIES = {
    "config": "settings",
    "reprompt": "teacher prompt",
    "loss": "loss",
    "update": "update",
}


@dataclass(frozen=True)
class CaseError:
    """The largest finite error of one case at one stage, in three units."""

    case: str
    status: Status
    used: float
    max_abs: float
    max_ulp: float


@dataclass(frozen=True)
class StageErrors:
    """The cases of one numeric stage.

    Every case is in one of four groups: `bit_equal` (a count), `errors` (a finite error above
    zero), `odd` (a count: NaN or infinity on one side only), `failed` (a count).
    """

    name: str
    bit_equal: int
    errors: tuple[CaseError, ...]
    odd: int
    failed: int

    @property
    def cases(self) -> int:
        """All cases of the stage."""
        return self.bit_equal + len(self.errors) + self.odd + self.failed


@dataclass(frozen=True)
class Cell:
    """One stage in the overview; `compared` counts cases."""

    number: int
    name: str
    status: Status
    family: str
    compared: int


def stage_errors(run: RunReport) -> list[StageErrors]:
    """The numeric stages that were compared, in causal order."""
    rows = [row for row in run.stages if STAGES[row.name].kind == "numeric"]
    return [_errors(row.name, row.by_case) for row in rows if row.by_case]


def _errors(name: str, by_case: Sequence[CaseFigures]) -> StageErrors:
    cases = [
        CaseError(row.case, row.status, *map(float, (row.budget_used, row.max_abs, row.max_ulp)))
        for row in by_case
    ]
    equal = sum(case.status == Status.MATCH for case in cases)
    failed = sum(case.status == Status.ERROR for case in cases)
    rest = [case for case in cases if case.status not in (Status.MATCH, Status.ERROR)]
    errors = tuple(case for case in rest if case.used > 0 and math.isfinite(case.used))
    return StageErrors(name, equal, errors, len(rest) - len(errors), failed)


def overview(run: RunReport) -> list[Cell]:
    """All sixteen stages with status, family and number of cases."""
    return [
        Cell(
            number=STAGES[row.name].number,
            name=row.name,
            status=row.status,
            family=_FAMILIES[STAGES[row.name].family],
            compared=len(row.by_case),
        )
        for row in run.stages
    ]


def log_range(
    values: Sequence[float], within: tuple[float, float], at_least: tuple[float, float]
) -> tuple[float, float]:
    """Limits of a log axis around positive values.

    Args:
        values: to show; those outside `within` are drawn at its edges.
        within: the widest limits.
        at_least: the narrowest.
    """
    low = min([max(min(values, default=at_least[0]), within[0]), at_least[0]])
    high = max([min(max(values, default=at_least[1]), within[1]), at_least[1]])
    margin = max(1.6, (high / low) ** 0.04)
    return low / margin, high * margin


def clipped(value: float, within: tuple[float, float]) -> float:
    """A value moved to the nearer edge if it lies outside."""
    return min(max(value, within[0]), within[1])


def power_of_ten(value: float) -> str:
    """`10⁻³` for 0.001; 1 and 10 as they are."""
    exponent = round(math.log10(value))
    if exponent in (0, 1):
        return str(10**exponent)
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def swarm(
    values: Sequence[float], limits: tuple[float, float], bins: int = 90, step: float = 0.09
) -> list[float]:
    """Offsets that keep nearby values on a log axis apart.

    Args:
        values: positive, within the limits.
        limits: of the axis.
        bins: number of bins along the axis; each fills symmetrically from its middle.
        step: between neighbours in a bin; less in bins that would leave ±0.4.
    """
    width = math.log(limits[1] / limits[0]) / bins
    members: dict[int, list[int]] = {}
    for index in sorted(range(len(values)), key=values.__getitem__):
        place = math.floor(math.log(values[index] / limits[0]) / width)
        members.setdefault(place, []).append(index)
    offsets = [0.0] * len(values)
    for indices in members.values():
        middle = (len(indices) - 1) / 2
        distance = min(step, 0.4 / middle) if middle else 0.0
        for rank, index in enumerate(indices):
            offsets[index] = (rank - middle) * distance
    return offsets
