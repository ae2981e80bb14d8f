"""Provides the tables, captions and options that the performance measurements share."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sdpo.parity.report.environment import processor
from sdpo.runtime.markdown_table import markdown_table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

OUT = Path(__file__).parents[2] / "reports" / "performance"
Row = dict[str, float | str]
"""One measurement: what was measured, under which conditions."""


def options(description: str | None, **defaults: object) -> argparse.ArgumentParser:
    """Make a command line with a module's first line, and options by their defaults.

    An option takes a value of its default's type, several values if the default is a list.
    """
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    for name, default in defaults.items():
        kind = type(default[0] if isinstance(default, list) else default)
        count = "+" if isinstance(default, list) else None
        parser.add_argument(
            f"--{name}", type=kind, nargs=count, default=default, help="%(default)s"
        )
    return parser


def add_output_options(parser: argparse.ArgumentParser, name: str | None) -> None:
    """Add the options of measurements that write tables and plots."""
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the results")
    parser.add_argument("--name", default=name, help="of the results' files")


def median_and_range(values: "pd.Series", digits: int = 2) -> str:
    """Show median, smallest and largest, as `1.00 (0.90 to 1.10)`."""
    middle, low, high = values.median(), values.min(), values.max()
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def legend_below(figure: "Figure") -> None:
    """Put one legend for all axes under them, where it hides nothing."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, ncols=len(labels), loc="outside lower center")


def machine(*, threads: int | None, device: str = "cpu", dtype: str = "float32") -> str:
    """Name the versions and the processor that measured, for captions."""
    on_cpu = device != "cuda"
    name = f"{processor()}, {threads} threads" if on_cpu else torch.cuda.get_device_name()
    return f"torch {torch.__version__}, {name}, {dtype}"


def write_table(file: Path, rows: "pd.DataFrame", table: "pd.DataFrame", caption: str) -> None:
    """Write measurements as CSV and their summary as Markdown, and print the summary."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows.to_csv(file.with_suffix(".csv"), index=False)
    loads = f"load average {rows['load'].min():.1f} to {rows['load'].max():.1f}"
    repeats = f"median (smallest to largest) of {rows['round'].nunique()}"
    cells = (
        [f"{cell:.3g}" if isinstance(cell, float) else cell for cell in row]
        for row in table.itertuples(index=False)
    )
    shown = markdown_table(list(table.columns), cells, left=len(table.columns))
    text = f"{caption}; {loads}; {repeats}\n\n{shown}\n"
    file.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
