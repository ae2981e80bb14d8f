"""What the audit of a training leaves behind: rows in CSV files, and a plot of the drift."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from sdpo.lockstep.update_distances import Delta, refused
from sdpo.parity.cases.stages import STAGES

Row = dict[str, float | str]
"""A line of a CSV file by column; steps are whole numbers."""

_SMALLEST = 1e-17
"""What is drawn for a distance of zero."""

_DRIFTS = {"weights": ("student", "o-", "black"), "teacher": ("teacher", "s--", "0.5")}


_REPORTED = {
    "aggregate": "loss",
    "gradient": "gradient",
    "weights": "weights",
    "teacher": "teacher",
}
COLUMNS = (
    *("step", "loss", "reference_loss", "delta_loss", "gradient_cosine"),
    *(f"{label}_{kind}" for label in _REPORTED.values() for kind in ("relative", "budget")),
    *("verdict", "reason", "first_moved", "first_value", "first_step", "audited", "seconds"),
)
_RESUMED_INSIDE = "nothing: the run was resumed inside this update"


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
        self.rows = [{name: _number(text) for name, text in row.items()} for row in kept]
        if self.writes and self.path.is_file():
            self.path.unlink()
            for row in kept:
                self._write(row)

    def read(self) -> list[dict[str, str]]:
        """Read the rows on the disk."""
        if not self.path.is_file():
            return []
        with self.path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def append(self, row: Row) -> None:
        """Add a row."""
        self.rows.append(row)
        if self.writes:
            self._write(row)

    def _write(self, row: Mapping[str, float | str]) -> None:
        new = not self.path.is_file()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)


def check_row(
    step: int,
    losses: Sequence[float],
    cosine: float,
    distances: Sequence[Delta],
    allowed: Mapping[str, float],
    first: Delta | None,
) -> Row:
    """Make the row of a checked update, but for what was audited and how long it took.

    Args:
        step: the optimizer step after it.
        losses: of trainer and reference.
        cosine: the smallest between their gradients.
        distances: of all values.
        allowed: the budget of each kind of value.
        first: the earliest distance beyond its budget.
    """
    row: Row = {"step": step, "loss": losses[0], "reference_loss": losses[1]}
    row |= {"delta_loss": abs(losses[0] - losses[1]), "gradient_cosine": cosine}
    for name, label in _REPORTED.items():
        row[f"{label}_relative"] = max(delta.value for delta in distances if delta.name == name)
        row[f"{label}_budget"] = allowed[name]
    row["reason"] = refused(distances, allowed)
    row["verdict"] = "DIVERGENT" if first else "INCONCLUSIVE" if row["reason"] else "PASS"
    row["first_moved"] = first.stage if first else ""
    row["first_value"] = first.name if first else ""
    row["first_step"] = first.step if first else ""
    return row


def unchecked_row(step: int) -> Row:
    """Make the row of an update whose beginning is not known."""
    known = {"step": step, "audited": _RESUMED_INSIDE, "verdict": "INCONCLUSIVE"}
    return dict.fromkeys(COLUMNS, "") | known


def logged(row: Row) -> dict[str, float]:
    """Pick the numbers of a row for the trainer's log; of the first stage its number."""
    first = str(row["first_moved"])
    return {name: v for name, v in row.items() if isinstance(v, float) and name != "seconds"} | {
        "first_moved": STAGES[first].number if first else 0,
        "inconclusive": float(row["verdict"] == "INCONCLUSIVE"),
    }


def _number(text: str) -> float | str:
    """Read a value as it was before it was written."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def plot_drift(rows: Sequence[Row], checks: Sequence[Row], path: Path) -> None:
    """Plot the distance between the trained model and its lockstep replica, on a log scale.

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
    for name, (label, style, color) in _DRIFTS.items():
        values = [max(row[name], _SMALLEST) for row in rows]
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
