"""Plots of a report as PNG: overview of the stages, use of the budget, size of the errors.

Legible 800 pixels wide and in grey: statuses differ by marker and hatch, not only by colour.
Matplotlib is imported when something is drawn; only its object interface is used.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import groupby
from statistics import median
from typing import TYPE_CHECKING, Any

from sdpo.parity.render.plot_data import CaseError, Cell, StageErrors, overview, stage_errors, swarm
from sdpo.parity.render.text import RUN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, DPI = 8.0, 200
CAP = 1e6
"""Budget use beyond this is drawn at the edge."""

INK, MUTED, FAINT = "#1f2328", "#57606a", "#d0d7de"
LOOKS = {
    "MATCH": ("#1a7f4b", "", "white", "="),
    "PASS": ("#9fd3b4", "", INK, "≈"),
    "DECLARED": ("#f2c14e", "///", INK, "D"),
    "DIVERGENT": ("#b3261e", "xxx", "white", "✗"),
    "ERROR": ("#24292f", "...", "white", "!"),
    "NOT_COVERED": ("white", "", MUTED, "–"),
}
MARKERS = {
    "PASS": ("o", "#2f6fb3", 16),
    "DECLARED": ("D", "#c98a00", 18),
    "DIVERGENT": ("X", "#b3261e", 34),
    "ERROR": ("P", INK, 34),
}
ROUNDOFFS = {"float64": 2.0**-53, "float32": 2.0**-24, "bfloat16": 2.0**-8}
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.unicode_minus": False,
    "xtick.color": MUTED,
    "ytick.color": INK,
    "hatch.linewidth": 0.6,
    "text.parse_math": False,
}


@dataclass(frozen=True)
class Plot:
    """A finished picture."""

    file: str
    title: str
    caption: str
    png: bytes


def draw_plots(run: RUN) -> list[Plot]:
    """All plots for which the run has data; the overview always."""
    label = f"{printable(run['candidate'])} – {run['verdict']}"
    cells, errors = overview(run), stage_errors(run)
    made = [
        Plot(
            "overview.png",
            f"Status of the {len(cells)} stages",
            "Status of each stage in causal order; below it the number of cases compared.",
            png(lambda: draw_overview(cells, label)),
        )
    ]
    if not errors:
        return made
    budget = Plot(
        "budget.png",
        "Error of each case in units of its budget",
        "Left: cases that are bit-equal. Right: for each other case the element that uses most of "
        "its rounding budget; beyond 1 no correct evaluation is expected. Vertical ticks: medians.",
        png(lambda: draw_budget(errors, label)),
    )
    size = Plot(
        "errors.png",
        "Size of the errors of each case",
        "The largest absolute error of each case that is not bit-equal, and the largest error in "
        "units in the last place among elements larger than their budget. Large figures here are "
        "ill-conditioned elements or low precision; the budget accounts for both.",
        png(lambda: draw_errors(errors, label)),
    )
    return [*made, budget, size]


def printable(text: str, limit: int = 60) -> str:
    """A text with the characters every font has."""
    plain = "".join(c if c.isprintable() and ord(c) < 256 else "?" for c in text)
    return plain if len(plain) <= limit else "..." + plain[3 - limit :]


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib's defaults with our style, whatever the user configured."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def png(draw: Callable[[], "Figure"]) -> bytes:
    """Draw a figure and encode it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with style():
        figure = draw()
        FigureCanvasAgg(figure)
        buffer = BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def new_figure(height: float, title: str, label: str) -> "Figure":
    """An empty figure with its title and what it is about."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), facecolor="white")
    top = 1 - 0.12 / height
    figure.text(0.015, top, title, fontsize=11, fontweight="bold", va="top")
    figure.text(0.985, top, label, fontsize=9, color=MUTED, ha="right", va="top")
    return figure


def draw_overview(cells: Sequence[Cell], label: str) -> "Figure":
    """A strip of the stages: status by colour, hatch and sign, families above."""
    from matplotlib.patches import Rectangle

    height = 2.5
    figure = new_figure(height, "The stages of an SDPO step", label)
    axes = figure.add_axes((0.015, 0.0, 0.97, 0.86), xlim=(0, len(cells)), ylim=(-1.75, 1.75))
    axes.set_axis_off()
    for place, cell in enumerate(cells):
        face, hatch, ink, sign = LOOKS[cell.status]
        box = {"facecolor": face, "edgecolor": MUTED, "linewidth": 0.8}
        axes.add_patch(Rectangle((place + 0.05, 0), 0.9, 1, hatch=hatch, **box))
        shade = {"facecolor": face, "edgecolor": "none", "pad": 1.5, "boxstyle": "round"}
        axes.text(
            place + 0.5, 0.5, sign, color=ink, fontsize=13, ha="center", va="center", bbox=shade
        )
        axes.text(
            place + 0.62,
            -0.08,
            f"{cell.number} {cell.name}",
            fontsize=8.5,
            rotation=38,
            ha="right",
            va="top",
            rotation_mode="anchor",
        )
    _families(axes, cells)
    _legend(axes, cells)
    return figure
