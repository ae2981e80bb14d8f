"""How the plots look. Legible 800 pixels wide and in grey.

Statuses differ by marker or hatch and sign, not only by colour.
"""

from collections.abc import Sequence
from itertools import groupby
from statistics import median
from typing import TYPE_CHECKING, Any

from sdpo.parity.compare.statuses import Status
from sdpo.parity.render.plot_data import Cell, StageErrors, clipped, log_range, power_of_ten, swarm

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, DPI = 8.0, 200
_BUDGET_RANGE = (1e-6, 1e6)
_SIZE_RANGE = (1e-20, 1e6)
_ULP_RANGE = (0.25, 1e9)
"""Values outside are drawn at the edge, and counted there."""

INK, MUTED, FAINT = "#1f2328", "#57606a", "#d8dee4"
_LOOKS = {
    Status.MATCH: ("#1a7f4b", "", "white", "="),
    Status.PASS: ("#a9dcbd", "", INK, "≈"),
    Status.DECLARED: ("#f6cf6a", "////", INK, "D"),
    Status.DIVERGENT: ("#b3261e", "xxxx", "white", "✗"),
    Status.ERROR: ("#24292f", "....", "white", "!"),
    Status.NOT_COVERED: ("white", "", MUTED, "–"),
}
_MARKERS = {
    Status.PASS: ("o", "#2f6fb3", 16),
    Status.DECLARED: ("D", "#d99a00", 16),
    Status.DIVERGENT: ("X", "#b3261e", 30),
}
_ROUNDOFFS = {"float64": 2.0**-53, "float32": 2.0**-24, "bfloat16": 2.0**-8}
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": INK,
    "hatch.linewidth": 0.5,
}


def new_figure(height: float, title: str, label: str) -> "Figure":
    """An empty figure with its title and what it is about."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), facecolor="white")
    top = 1 - 0.1 / height
    figure.text(0.015, top, title, fontsize=11, fontweight="bold", va="top")
    figure.text(0.985, top - 0.03 / height, label, color=MUTED, ha="right", va="top")
    return figure


def draw_overview(cells: Sequence[Cell], label: str) -> "Figure":
    """A strip of the stages: status by colour, hatch and sign; families above."""
    from matplotlib.patches import Rectangle

    figure = new_figure(2.6, "Stages of an SDPO step, with cases compared", label)
    axes = figure.add_axes((0.015, 0.0, 0.97, 0.87), xlim=(0, len(cells)), ylim=(-2.5, 1.85))
    axes.set_axis_off()
    for place, cell in enumerate(cells):
        face, hatch, ink, sign = _LOOKS[cell.status]
        look = {"facecolor": face, "edgecolor": MUTED, "linewidth": 0.8, "hatch": hatch}
        axes.add_patch(Rectangle((place + 0.04, 0), 0.92, 1, **look))
        plate = {"facecolor": face, "edgecolor": "none", "boxstyle": "round,pad=0.15"}
        centred = {"ha": "center", "va": "center", "color": ink, "bbox": plate}
        axes.text(place + 0.5, 0.66, sign, fontsize=12, fontweight="bold", **centred)
        if cell.compared:
            axes.text(place + 0.5, 0.22, str(cell.compared), fontsize=8, **centred)
        axes.text(
            place + 0.7,
            -0.12,
            f"{cell.name} {cell.number}",
            fontsize=8.5,
            rotation=35,
            rotation_mode="anchor",
            ha="right",
            va="top",
        )
    _families(axes, cells)
    _status_legend(figure, [cell.status for cell in cells])
    return figure


def _families(axes: "Axes", cells: Sequence[Cell]) -> None:
    """A bracket with its name above the stages of each family."""
    start = 0
    for family, members in groupby(cell.family for cell in cells):
        end = start + len(list(members))
        corners = [start + 0.08, start + 0.08, end - 0.08, end - 0.08]
        axes.plot(corners, [1.12, 1.22, 1.22, 1.12], color=MUTED, linewidth=0.9)
        middle = (start + end) / 2
        axes.text(middle, 1.32, family, color=MUTED, fontsize=8.5, ha="center", va="bottom")
        start = end


def _status_legend(figure: "Figure", statuses: Sequence[Status]) -> None:
    """Sign and number of stages for each status that occurs."""
    from matplotlib.patches import Patch

    shown = [status for status in _LOOKS if status in statuses]
    handles = [
        Patch(facecolor=_LOOKS[s][0], hatch=_LOOKS[s][1], edgecolor=MUTED, linewidth=0.8)
        for s in shown
    ]
    names = [f"{_LOOKS[s][3]} {s} ({statuses.count(s)})" for s in shown]
    figure.legend(handles, names, loc="lower center", ncols=6, frameon=False, fontsize=8.5)


def draw_budget(stages: Sequence[StageErrors], label: str) -> "Figure":
    """Bit-equal share of each stage, and the distribution of error ÷ budget over its cases."""
    height = _height(stages)
    figure = new_figure(height, "Error of each case in units of its budget", label)
    _bit_equal(_panel(figure, (0.165, 0.17), stages), stages)
    axes = _panel(figure, (0.37, 0.565), stages, names=False)
    low, high = _values(axes, stages, "used", _BUDGET_RANGE, (1e-3, 4.0))
    axes.axvspan(1.0, high, color="#f6dcda", zorder=0)
    axes.axvline(1.0, color="#b3261e", linewidth=1.6, zorder=1)
    axes.text(1.0, -0.95, "within budget  ", fontsize=8.5, ha="right", va="center")
    axes.text(1.0, -0.95, "  over", fontsize=8.5, ha="left", va="center")
    axes.set_xlabel("error ÷ budget, worst element, log scale")
    for row, stage in enumerate(stages):
        if not stage.errors:
            note = "all bit-equal" if stage.bit_equal == stage.cases else "no finite difference"
            axes.text(low**0.5, row, note, color=MUTED, ha="center", va="center")
    _case_legend(figure, stages)
    return figure


def draw_errors(stages: Sequence[StageErrors], label: str) -> "Figure":
    """Largest absolute error and largest error in ULP of each case that is not bit-equal."""
    height = _height(stages)
    figure = new_figure(height, "Size of the errors of each case", label)
    left = _panel(figure, (0.165, 0.36), stages)
    right = _panel(figure, (0.59, 0.345), stages, names=False)
    low, high = _values(left, stages, "max_abs", _SIZE_RANGE, (0.5, 2.0))
    _values(right, stages, "max_ulp", _ULP_RANGE, (0.8, 20.0))
    left.set_xlabel("max |Δ|, log scale")
    right.set_xlabel("max ULP, log scale")
    marks = {name: size for name, size in _ROUNDOFFS.items() if low < size < high}
    for axes, lines in ((left, marks), (right, {"1 ULP": 1.0})):
        for name, size in lines.items():
            axes.axvline(size, color=MUTED, linewidth=0.9, linestyle=(0, (3, 2)), zorder=1)
            axes.text(size, -0.95, name, fontsize=8, color=MUTED, ha="center", va="center",
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip
    _case_legend(figure, stages)
    return figure


def _height(stages: Sequence[StageErrors]) -> float:
    return 1.55 + 0.42 * len(stages)


def _panel(
    figure: "Figure", place: tuple[float, float], stages: Sequence[StageErrors], names: bool = True
) -> "Axes":
    """Axes with one row for each stage, first stage on top."""
    height = _height(stages)
    bottom, top = 0.8 / height, 1 - 0.4 / height
    axes = figure.add_axes((place[0], bottom, place[1], top - bottom))
    axes.set_ylim(len(stages) - 0.5, -1.3)
    axes.set_yticks(range(len(stages)), [stage.name for stage in stages] if names else [])
    axes.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    for row in range(-1, len(stages) - 1):
        axes.axhline(row + 0.5, color=FAINT, linewidth=0.7, zorder=0)
    return axes


def _bit_equal(axes: "Axes", stages: Sequence[StageErrors]) -> None:
    """The share of bit-equal cases as number and bar; cases without a finite error beside it."""
    for row, stage in enumerate(stages):
        share = stage.bit_equal / stage.cases
        bar = {"height": 0.22, "edgecolor": MUTED, "linewidth": 0.7}
        axes.barh(row + 0.2, 1.0, color="white", **bar)
        axes.barh(row + 0.2, share, color="#8c96a0", **bar)
        text = f"{stage.bit_equal} of {stage.cases}"
        axes.text(0.0, row - 0.14, text, fontsize=8.5, va="center")
        others = {"NaN/inf": stage.odd, "failed": stage.failed}
        lines = [f"{count} {what}" for what, count in others.items() if count]
        right = {"fontsize": 7.5, "color": MUTED, "ha": "right", "va": "center"}
        axes.text(1.0, row - 0.15, "\n".join(lines), linespacing=1.0, **right)
    axes.text(0.0, -0.95, "bit-equal cases", fontsize=8.5, va="center")
    axes.set_xlim(-0.01, 1.01)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)


def _values(
    axes: "Axes",
    stages: Sequence[StageErrors],
    field: str,
    within: tuple[float, float],
    at_least: tuple[float, float],
) -> tuple[float, float]:
    """Draw one quantity of all cases, with the number of cases at the right; return the limits."""
    rows = [
        [(getattr(e, field), e.status) for e in stage.errors if getattr(e, field) > 0]
        for stage in stages
    ]
    values = [value for row in rows for value, _ in row]
    limits = log_range(values, within, at_least)
    _log_axis(axes, limits)
    for number, row in enumerate(rows):
        shown = [clipped(value, within) for value, _ in row]
        _dots(axes, number, shown, [status for _, status in row], limits)
        if len(row) > 2:
            middle = clipped(median(value for value, _ in row), within)
            bar = [number - 0.38, number + 0.38]
            axes.plot([middle, middle], bar, color=INK, linewidth=1.6, zorder=4)
    aside = {"color": MUTED, "fontsize": 8, "va": "center"}
    across = axes.get_yaxis_transform()
    for number, text in enumerate(["n", *(str(len(row)) for row in rows)]):
        axes.text(1.015, number - 1 if number else -0.95, text, transform=across, **aside)
    edges = (
        (0.0, "left", sum(v < within[0] for v in values), "◂ {} lower"),
        (1.0, "right", sum(v > within[1] for v in values), "{} higher ▸"),
    )
    for place, side, count, text in edges:
        if count:
            below = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": side}
            axes.annotate(text.format(count), (place, 0), (0, -25), **below, **aside)
    return limits


def _log_axis(axes: "Axes", limits: tuple[float, float]) -> None:
    """A log axis labelled with powers of ten, as plain text: mathematical text is slow to set."""
    from matplotlib.ticker import NullFormatter

    axes.set_xscale("log")
    axes.set_xlim(*limits)
    axes.xaxis.set_major_formatter(lambda value, _: power_of_ten(value))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _dots(
    axes: "Axes",
    row: int,
    values: Sequence[float],
    statuses: Sequence[Status],
    limits: tuple[float, float],
) -> None:
    """One mark for each case, side by side where they would overlap."""
    offsets = swarm(values, limits)
    for status, (marker, color, size) in _MARKERS.items():
        chosen = [i for i, found in enumerate(statuses) if found == status]
        axes.scatter(
            [values[i] for i in chosen],
            [row + offsets[i] for i in chosen],
            marker=marker,
            s=size,
            color=color,
            alpha=0.8,
            edgecolor="white",
            linewidth=0.3,
            zorder=3,
        )


def _case_legend(figure: "Figure", stages: Sequence[StageErrors]) -> None:
    """Markers of the statuses that occur, with their number of values."""
    from matplotlib.lines import Line2D

    found = [error.status for stage in stages for error in stage.errors]
    shown = [status for status in _MARKERS if status in found]
    handles: list[Any] = [
        Line2D([], [], marker=_MARKERS[s][0], color=_MARKERS[s][1], linestyle="", markersize=6)
        for s in shown
    ]
    names = [f"{s} (n = {found.count(s)})" for s in shown]
    handles.append(Line2D([], [], marker="|", color=INK, linestyle="", markersize=10, mew=1.6))
    look = {"frameon": False, "fontsize": 8.5, "handletextpad": 0.2, "columnspacing": 1.6}
    figure.legend(handles, [*names, "median"], loc="lower right", ncols=5, **look)
