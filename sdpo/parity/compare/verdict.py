"""From comparisons to a verdict: status per stage, status of the run, exit code."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import NamedTuple, TypedDict

from sdpo.parity.cases.stages import NAMES
from sdpo.parity.compare.comparison import Comparison, Worst
from sdpo.parity.compare.first_in_time import deciding, earliest, moment, openers
from sdpo.parity.compare.improvements import Improvement, improvements
from sdpo.parity.compare.statuses import SEVERITY, Status, Verdict, worst_status


class CaseSummary(TypedDict):
    """What a report says of a case, but for its comparisons."""

    id: str
    family: str
    tags: list[str]
    status: Status
    first_stage: str | None
    note: str


@dataclass
class CaseResult:
    """What happened to one case: its comparisons, or why there are none."""

    id: str
    family: str
    tags: tuple[str, ...] = ()
    comparisons: list[Comparison] = field(default_factory=list)
    note: str = ""

    @property
    def status(self) -> Status:
        """The most severe status among the comparisons."""
        return worst_status([comparison.status for comparison in self.comparisons])

    @property
    def first_stage(self) -> str | None:
        """The stage that is the first in time to diverge or fail in this case."""
        first = earliest(self.comparisons)
        return first.stage if first else None

    def row(self) -> CaseSummary:
        """Give what the report says of the case."""
        worst_first = sorted(
            self.comparisons,
            key=lambda c: (-SEVERITY.index(c.status), bool(c.inherits), moment(c)),
        )
        notes = [self.note] + [c.note for c in worst_first if c.status != Status.PASS]
        return {
            "id": self.id,
            "family": self.family,
            "tags": list(self.tags),
            "status": self.status,
            "first_stage": self.first_stage,
            "note": next((note for note in notes if note), ""),
        }


class CaseFigures(NamedTuple):
    """The status and the largest errors of a case at a stage."""

    case: str
    status: Status
    budget_used: float
    max_abs: float
    max_ulp: float


@dataclass(frozen=True, kw_only=True)
class StageFigures:
    """One stage over all cases; `report_rows.StageRow` says what the figures are."""

    name: str
    status: Status
    max_abs: float | None = None
    max_ulp: float | None = None
    budget_used: float | None = None
    worst: Worst | None = None
    first_in: int
    introduced: Worst | None
    comparisons: int
    bit_equal: int
    empty: int
    smallest_detectable: float | None = None
    relative: float | None = None
    note: str = ""
    by_case: list[CaseFigures]


def stage_rows(results: Sequence[CaseResult]) -> list[StageFigures]:
    """Sum up each of the sixteen stages, in order."""
    opening = [openers(result) for result in deciding(results)]
    return [_stage_row(name, results, opening) for name in NAMES]


def _stage_row(
    name: str, results: Sequence[CaseResult], opening: Sequence[Sequence[Comparison]]
) -> StageFigures:
    comparisons = [c for result in results for c in result.comparisons if c.stage == name]
    first = [c for group in opening for c in group if c.stage == name]
    row = StageFigures(
        name=name,
        status=worst_status([c.status for c in comparisons]),
        first_in=sum(bool(group) and group[0].stage == name for group in opening),
        introduced=_introduced(max(first, key=_severity)) if first else None,
        comparisons=len(comparisons),
        bit_equal=sum(c.status == Status.MATCH for c in comparisons),
        empty=sum(c.status == Status.NOT_COVERED for c in comparisons),
        by_case=_by_case(comparisons),
    )
    if not comparisons:
        return row
    worst = max(comparisons, key=_severity)
    shown = [c.relative for c in comparisons if c.status == worst.status and c.relative is not None]
    sizes = [c.smallest_detectable for c in comparisons if c.smallest_detectable is not None]
    return replace(
        row,
        max_abs=max(c.max_abs for c in comparisons),
        max_ulp=max(c.max_ulp for c in comparisons),
        budget_used=max(c.budget_used for c in comparisons),
        worst=_place(worst),
        smallest_detectable=min(sizes, default=None),
        relative=max(shown, default=None),
        note=worst.note,
    )


def _place(comparison: Comparison) -> Worst | None:
    return {"case": comparison.case} | comparison.worst if comparison.worst else None


def _introduced(comparison: Comparison) -> Worst | None:
    place = _place(comparison)
    if place is None or comparison.relative is None:
        return place
    return place | {"relative": comparison.relative}


def _severity(comparison: Comparison) -> tuple[int, float]:
    return SEVERITY.index(comparison.status), comparison.budget_used


def _by_case(comparisons: Iterable[Comparison]) -> list[CaseFigures]:
    """Sum up each case; empty comparisons are left out."""
    cases: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        if comparison.status != Status.NOT_COVERED:
            cases.setdefault(comparison.case, []).append(comparison)
    return [
        CaseFigures(
            case,
            worst_status([c.status for c in values]),
            max(c.budget_used for c in values),
            max(c.max_abs for c in values),
            max(c.max_ulp for c in values),
        )
        for case, values in cases.items()
    ]


@dataclass(frozen=True, kw_only=True)
class UsedImprovement(Improvement):
    """An exception, and the cases that fall under it."""

    cases: list[str]


def improvement_rows(results: Iterable[CaseResult]) -> list[UsedImprovement]:
    """The exceptions that some cases fall under, with the cases: what the report prints."""
    cases: dict[str, dict[str, None]] = {}
    for result in results:
        for comparison in result.comparisons:
            if comparison.effect in improvements():
                cases.setdefault(comparison.effect, {})[result.id] = None
    return [
        UsedImprovement(**asdict(entry), cases=list(cases[effect]))
        for effect, entry in improvements().items()
        if effect in cases
    ]


def run_verdict(
    statuses: Iterable[Status], *, missing: Sequence[str] = (), doubts: Sequence[str] = ()
) -> Verdict:
    """The verdict of a run: the worst found wins.

    Args:
        statuses: of all stages.
        missing: required stages that were not covered.
        doubts: other reasons why a pass cannot be given.
    """
    seen = set(statuses)
    if Status.ERROR in seen:
        return Verdict.ERROR
    if Status.DIVERGENT in seen:
        return Verdict.DIVERGENT
    if missing or doubts or seen <= {Status.NOT_COVERED}:
        return Verdict.INCONCLUSIVE
    return Verdict.DECLARED if Status.DECLARED in seen else Verdict.PASS
