"""Tables and plots of the performance reports."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sdpo.parity.report.environment import processor

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

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


def legend_below(figure: "Figure") -> None:
    """One legend for all axes, in a row under them, where it hides nothing."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, ncols=len(labels), loc="outside lower center")


def machine(*, threads: int | None, device: str = "cpu", dtype: str = "float32") -> str:
    """What measured, for captions."""
    on_cpu = device != "cuda"
    name = f"{processor()}, {threads} threads" if on_cpu else torch.cuda.get_device_name()
    return f"torch {torch.__version__}, {name}, {dtype}"


def write(file: Path, rows: "pd.DataFrame", table: "pd.DataFrame", caption: str) -> None:
    """Measurements as CSV and their summary as Markdown, beside each other and on the terminal."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows.to_csv(file.with_suffix(".csv"), index=False)
    loads = f"load average {rows['load'].min():.1f} to {rows['load'].max():.1f}"
    repeats = f"median (smallest to largest) of {rows['round'].nunique()}"
    text = f"{caption}; {loads}; {repeats}\n\n{markdown(table)}"
    file.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
