"""What the audit of a training leaves behind: rows in CSV files, and a plot of the drift."""

import csv
from pathlib import Path
from typing import Any

Row = dict[str, Any]

SMALLEST = 1e-17
"""What is drawn for a distance of zero."""

DRIFTS = {"weights": ("student", "o-", "black"), "teacher": ("teacher", "s--", "0.5")}


class RowFile:
    """A CSV file that grows by a row at a time, so that an interrupted run keeps its rows.

    Args:
        path: the file.
        writes: whether this process writes; the others only count.
    """

    def __init__(self, path: Path, *, writes: bool = True):
        self.path, self.writes = path, writes
        self.rows: list[Row] = []

    def resume(self, step: int) -> None:
        """Go on after an optimizer step: later rows of an earlier run are dropped.

        Step 0 begins a new file.
        """
        kept = [row for row in self.read() if int(row["step"]) <= step] if step else []
        self.rows = [{name: number(text) for name, text in row.items()} for row in kept]
        if self.writes and self.path.is_file():
            self.path.unlink()
            for row in kept:
                self._write(row)

    def read(self) -> list[dict[str, str]]:
        """The rows on the disk."""
        if not self.path.is_file():
            return []
        with self.path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def append(self, row: Row) -> None:
        """Add a row."""
        self.rows.append(row)
        if self.writes:
            self._write(row)

    def _write(self, row: Row) -> None:
        new = not self.path.is_file()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)


def number(text: str) -> Any:
    """A value as it was before it was written."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def plot_drift(rows: list[Row], checks: list[Row], path: Path) -> None:
    """Distance between the trained model and its lockstep replica over steps, on a log scale.

    Lines differ by marker and dashes, so that the plot can be read in grey.

    Args:
        rows: of the drift.
        checks: of the audit; their budgets for the weights after one update are drawn beside it.
        path: of the picture.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    steps = [row["step"] for row in rows]
    for name, (label, style, color) in DRIFTS.items():
        values = [max(row[name], SMALLEST) for row in rows]
        axes.plot(steps, values, style, color=color, markersize=4, label=label)
    measured = [row for row in checks if row["loss"] != ""]
    if measured:
        allowed = [row["weights_budget"] for row in measured]
        label = "budget of the student's weights in one update"
        axes.plot([row["step"] for row in measured], allowed, ":", color="0.3", label=label)
    axes.set(
        xlabel="optimizer step",
        ylabel="distance to the replica ÷ way gone (no unit)",
        title="Drift from a replica trained by the reference alone",
        yscale="log",
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
