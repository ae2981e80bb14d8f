"""One stage of a report as texts: figures, worst place, source lines of the reference."""

from typing import Any, NamedTuple

from sdpo.parity.cases.stages import STAGES, Stage
from sdpo.parity.compare.statuses import FAILING, Status
from sdpo.parity.render.text import number
from sdpo.parity.report.report_rows import StageRow

REPOSITORY = "https://github.com/lasgroup/SDPO"
NOT_PLACES = ("case", "value", "actual", "expected", "budget")


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
        url=permalink(stage, commit),
    )


def permalink(stage: Stage, commit: str | None) -> str | None:
    """Where the reference computes a stage, pinned to a commit."""
    if commit is None:
        return None
    path, _, lines = stage.source.partition(":")
    anchor = "-".join(f"L{line}" for line in lines.split("-") if line)
    return f"{REPOSITORY}/blob/{commit}/{path}" + (f"#{anchor}" if anchor else "")


def budget_share(row: StageRow) -> str:
    """Budget used, in per cent; what has no finite difference is said in words.

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
    """The worst place of a stage as texts; None where nothing departs."""
    worst = row.worst
    if not worst:
        return None
    places = [f"{key.replace('_', ' ')} {worst[key]}" for key in worst if key not in NOT_PLACES]
    actual, expected = digits(worst.get("actual"), worst.get("expected"))
    return WorstPlace(
        case=str(worst.get("case", "")),
        place=", ".join(places),
        value=str(worst.get("value", "")),
        actual=actual,
        expected=expected,
        budget=number(worst["budget"]) if "budget" in worst else "",
    )


def _single(value: Any) -> str:
    """One value on its own."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def digits(actual: Any, expected: Any) -> tuple[str, str]:
    """Two values with as few digits as show their difference."""
    pair = (actual, expected)
    if not all(isinstance(value, float) for value in pair):
        return _single(actual), _single(expected)
    for precision in (4, 6, 9, 12):
        left, right = (f"{value:.{precision}g}" for value in pair)
        if left != right:
            return left, right
    return repr(actual), repr(expected)
