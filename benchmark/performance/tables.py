"""Tables and plots of the performance reports."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

OUT = Path(__file__).parents[2] / "reports" / "performance"


def spread(values: Any, digits: int = 2) -> str:
    """Median, smallest and largest."""
    middle, low, high = values.median(), values.min(), values.max()
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def markdown(table: "pd.DataFrame") -> str:
    """A Markdown table; numbers with three digits."""
    lines = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    for _, row in table.iterrows():
        cells = [f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
