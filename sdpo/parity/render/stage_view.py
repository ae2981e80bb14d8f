"""One stage of a report as texts: figures, worst place, source lines of the reference."""

from typing import Any

from sdpo.parity.cases.stages import STAGES, Stage
from sdpo.parity.render.text import number
from sdpo.parity.report.counts import compared

FAILING = ("DIVERGENT", "ERROR")
REPOSITORY = "https://github.com/lasgroup/SDPO"
NOT_PLACES = ("case", "value", "actual", "expected", "budget")


def stage_view(row: dict[str, Any], commit: str | None) -> dict[str, Any]:
    """One stage for the verdict table and the coverage table."""
    stage = STAGES[row["name"]]
    numeric = stage.kind == "numeric"
    return {
        "number": stage.number,
        "name": stage.name,
        "status": row["status"],
        "compares": stage.compares,
        "compared": compared(row),
        "bit_equal": row["bit_equal"],
        "max_abs": number(row["max_abs"]) if numeric else "-",
        "max_ulp": number(row["max_ulp"]) if numeric else "-",
        "share": share(row) if numeric else ("exact" if compared(row) else "-"),
        "worst": worst(row),
        "note": row["note"],
        "detectable": number(row["smallest_detectable"]),
        "source": stage.source,
        "url": permalink(stage, commit),
    }


def permalink(stage: Stage, commit: str | None) -> str | None:
    """Where the reference computes a stage, pinned to a commit."""
    if commit is None:
        return None
    path, _, lines = stage.source.partition(":")
    anchor = "-".join(f"L{line}" for line in lines.split("-") if line)
    return f"{REPOSITORY}/blob/{commit}/{path}" + (f"#{anchor}" if anchor else "")


def share(row: dict[str, Any]) -> str:
    """Budget used, in per cent; what has no finite difference is said in words.

    Where a stage fails, also how large the difference is beside the value itself.
    """
    used = row["budget_used"]
    if used is None:
        return "-"
    if isinstance(used, str):
        return used
    text = f"{number(100.0 * used)} %" if used < 100 else f"{used:.2g} × budget"
    values = row["worst"] or {}
    odd = any(values.get(side) in ("nan", "inf", "-inf") for side in ("actual", "expected"))
    if row["status"] not in FAILING:
        return text
    of_value = f", {number(row['relative'])} of the value" if row["relative"] is not None else ""
    return f"{text}, not finite" if odd else text + of_value


def worst(row: dict[str, Any]) -> dict[str, str] | None:
    """The place that uses most of its budget: where, and both values."""
    found = row["worst"]
    if not found:
        return None
    places = [f"{key.replace('_', ' ')} {found[key]}" for key in found if key not in NOT_PLACES]
    actual, expected = digits(found.get("actual"), found.get("expected"))
    return {
        "case": str(found.get("case", "")),
        "place": ", ".join(places),
        "value": str(found.get("value", "")),
        "actual": actual,
        "expected": expected,
        "budget": number(found["budget"]) if "budget" in found else "",
    }


def single(value: Any) -> str:
    """One value on its own."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def digits(actual: Any, expected: Any) -> tuple[str, str]:
    """Two values with as few digits as show their difference."""
    pair = (actual, expected)
    if not all(isinstance(value, float) for value in pair):
        return single(actual), single(expected)
    for precision in (4, 6, 9, 12):
        left, right = (f"{value:.{precision}g}" for value in pair)
        if left != right:
            return left, right
    return repr(actual), repr(expected)
