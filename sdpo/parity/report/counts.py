"""How much was compared, counted once: for terminal, Markdown, HTML, JUnit and the docs.

A comparison counts if at least one of its elements does. Those without (all tokens of a case are
masked, say) stand in `report.json` as NOT_COVERED, are part of `comparisons` there, and are said
apart here.
"""

from collections.abc import Mapping
from typing import Any


def compared(row: Mapping[str, Any]) -> int:
    """Comparisons of a stage row in which an element counts."""
    return row["comparisons"] - row.get("empty", 0)


def without_element(run: Mapping[str, Any]) -> int:
    """Comparisons of a RUN document in which no element counts."""
    return sum(row.get("empty", 0) for row in run["stages"])


def compared_in(run: Mapping[str, Any]) -> int:
    """Comparisons of a RUN document in which an element counts."""
    return run["totals"]["comparisons"] - without_element(run)


def statuses(run: Mapping[str, Any]) -> str:
    """How many cases have each status; `none` without any."""
    counts = run["totals"]["by_status"].items()
    return ", ".join(f"{count} {status}" for status, count in counts) or "none"


def cases(run: Mapping[str, Any]) -> str:
    """How many cases there are, and their statuses."""
    return f"{run['totals']['cases']} cases ({statuses(run)})"


def comparisons(run: Mapping[str, Any]) -> str:
    """How many comparisons were made, of how many elements, and how many are bit-equal."""
    totals, empty = run["totals"], without_element(run)
    apart = f" ({empty} more have no element that counts)" if empty else ""
    return (
        f"{compared_in(run)} comparisons of {totals['elements']} elements, "
        f"{totals['bit_equal']} bit-equal{apart}"
    )
