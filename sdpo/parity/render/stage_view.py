"""A stage of a report as texts: figures, worst place, source lines; the first divergent one."""

from collections.abc import Sequence
from typing import NamedTuple

from sdpo.parity.cases.stages import STAGES, Stage
from sdpo.parity.compare.statuses import FAILING, Status
from sdpo.parity.render.sentences import shows
from sdpo.parity.render.text import first_places
from sdpo.parity.report.judgement import number
from sdpo.parity.report.report_rows import Rung, StageRow
from sdpo.parity.report.run_report import RunReport

REPOSITORY = "https://github.com/lasgroup/SDPO"
_NOT_PLACES = ("case", "value", "actual", "expected", "budget")


class WorstPlace(NamedTuple):
    """The place that uses most of its budget: where, and both values."""

    case: str
    place: str
    value: str
    actual: str
    expected: str
    budget: str


class StageView(NamedTuple):
    """One stage for the verdict table and the coverage table."""

    number: int
    name: str
    status: Status
    compares: str
    compared: int
    bit_equal: int
    max_abs: str
    max_ulp: str
    share: str
    worst: WorstPlace | None
    note: str
    detectable: str
    source: str
    url: str | None


class FirstDivergence(NamedTuple):
    """The first divergent stage: how it was found, its worst place, and the ladder."""

    stage: str
    compares: str
    source: str
    url: str | None
    inferred: bool
    observed: str | None
    shows: str
    places: str
    row: StageView | None
    ladder: Sequence[Rung]
    failing: bool
    departing: int


def stage_view(row: StageRow, commit: str | None) -> StageView:
    """Put a stage into texts; addresses are pinned to the reference's commit."""
    stage = STAGES[row.name]
    numeric = stage.kind == "numeric"
    exact = "exact" if row.compared else "-"
    return StageView(
        number=stage.number,
        name=stage.name,
        status=row.status,
        compares=stage.compares,
        compared=row.compared,
        bit_equal=row.bit_equal,
        max_abs=number(row.max_abs) if numeric else "-",
        max_ulp=number(row.max_ulp) if numeric else "-",
        share=budget_share(row) if numeric else exact,
        worst=worst_place(row),
        note=row.note,
        detectable=number(row.smallest_detectable),
        source=stage.source,
        url=_permalink(stage, commit),
    )


def _permalink(stage: Stage, commit: str | None) -> str | None:
    """Give the address where the reference computes a stage, pinned to a commit."""
    if commit is None:
        return None
    path, _, lines = stage.source.partition(":")
    anchor = "-".join(f"L{line}" for line in lines.split("-") if line)
    return f"{REPOSITORY}/blob/{commit}/{path}" + (f"#{anchor}" if anchor else "")


def budget_share(row: StageRow) -> str:
    """Say how much of its budget a stage used, in per cent; in words without finite difference.

    Where a stage fails, also how large the difference is beside the value itself.
    """
    used = row.budget_used
    if used is None:
        return "-"
    if isinstance(used, str):
        return used
    text = f"{number(100.0 * used)} %" if used < 100 else f"{used:.2g} × budget"
    values = row.worst or {}
    odd = any(values.get(side) in ("nan", "inf", "-inf") for side in ("actual", "expected"))
    if row.status not in FAILING:
        return text
    of_value = f", {number(row.relative)} of the value" if row.relative is not None else ""
    return f"{text}, not finite" if odd else text + of_value


def worst_place(row: StageRow) -> WorstPlace | None:
    """Put the worst place of a stage into texts; None where nothing departs."""
    worst = row.worst
    if not worst:
        return None
    places = [f"{key.replace('_', ' ')} {worst[key]}" for key in worst if key not in _NOT_PLACES]
    actual, expected = digits(worst.get("actual"), worst.get("expected"))
    return WorstPlace(
        case=str(worst.get("case", "")),
        place=", ".join(places),
        value=str(worst.get("value", "")),
        actual=actual,
        expected=expected,
        budget=number(worst["budget"]) if "budget" in worst else "",
    )


def _single(value: object) -> str:
    """One value on its own."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def digits(actual: object, expected: object) -> tuple[str, str]:
    """Write two values with as few digits as show their difference."""
    if not isinstance(actual, float) or not isinstance(expected, float):
        return _single(actual), _single(expected)
    for precision in (4, 6, 9, 12):
        left, right = (f"{value:.{precision}g}" for value in (actual, expected))
        if left != right:
            return left, right
    return repr(actual), repr(expected)


def first_divergence(run: RunReport, commit: str | None) -> FirstDivergence | None:
    """Describe the first divergent stage, if there is one."""
    row = run.first_row
    if run.first_stage is None:
        return None
    stage = STAGES[run.first_stage]
    return FirstDivergence(
        stage=run.first_stage,
        compares=stage.compares,
        source=stage.source,
        url=_permalink(stage, commit),
        inferred=run.first_stage_inferred,
        observed=run.first_observed,
        shows=shows(run),
        places=first_places(run),
        row=stage_view(row, commit) if row else None,
        ladder=run.ladder,
        failing=row is not None and row.status == Status.ERROR,
        departing=sum("departs" in rung.result for rung in run.ladder),
    )
