"""Draws a benchmark report's plots, legible in grey: methods differ by dash and marker."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sdpo.benchmark.results.load_runs import Band, Run, band, by_name, interval_at, series
from sdpo.parity.render.figures import FAINT, INK, MUTED, new_figure
from sdpo.parity.render.plots import Plot, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLES = (
    ("#2f6fb3", "-", "o"),
    ("#b3261e", "--", "s"),
    ("#1a7f4b", "-.", "^"),
    ("#d99a00", ":", "D"),
    ("#6f42c1", (0, (5, 1, 1, 1)), "v"),
    ("#57606a", (0, (1, 1)), "P"),
)
_LEAST = 1e-10
"""Exact agreement is drawn here, as a logarithmic axis has no zero."""
_PANELS = (
    ("reward", "training reward", "mean fraction of tests passed"),
    ("self_distillation/reprompt_sample_fraction", "coverage", "share of rows with a teacher"),
    ("teacher/divergence_per_token", "divergence", "teacher to student, nats per token"),
    ("teacher/ahead_on_failed", "teacher on failed attempts", "log-prob gain in nats"),
    ("grad_norm", "gradient", "norm before clipping"),
    ("completions/mean_length", "length", "tokens per completion"),
)


def figures(runs: Sequence[Run]) -> list[Plot]:
    """Draw every plot for which there are data."""
    groups = by_name(runs)
    problems = runs[0].last["problems"]
    seeds = max(len(group) for group in groups.values())
    label = f"n = {problems} problems, {seeds} seed{'s' if seeds > 1 else ''}"
    plots = [
        Plot(
            "pass_at_1.png",
            "pass@1 on held-out problems",
            "Lines: mean over seeds. Bands: least and greatest seed. Bars at the right: 95 % "
            "interval, over problems, of the mean at the end of each line.",
            png(lambda: draw_pass(groups, label)),
        ),
        Plot(
            "training.png",
            "Training, step by step",
            "Mean over seeds with the range of seeds; a panel lacks methods that do not have it.",
            png(lambda: _draw_training(groups, label)),
        ),
    ]
    audited = [run for run in runs if run.parity]
    if audited:
        plots.append(
            Plot(
                "loss_difference.png",
                "Distance to the reference, step by step",
                "Relative distance of loss and gradient to the same update by the reference; the "
                "line is the budget. Drift: distance to a replica that the reference alone trains "
                "from the same rollouts. Exact agreement is drawn at 1e-10.",
                png(lambda: _draw_parity(audited, label)),
            )
        )
    return plots


def draw_pass(groups: dict[str, list[Run]], label: str) -> "Figure":
    """Draw pass@1 over steps."""
    figure = new_figure(3.8, "pass@1 on held-out problems", label)
    axes = figure.add_axes((0.09, 0.13, 0.72, 0.72))
    for number, (name, runs) in enumerate(groups.items()):
        colour, dash, marker = _STYLES[number % len(_STYLES)]
        rows = band([run.evals for run in runs], "pass_at_1")
        _draw_band(axes, rows, colour, ls=dash, marker=marker, ms=4, label=name)
        last = interval_at(runs, rows[-1].step)
        at = rows[-1].step * (1.03 + 0.02 * number)
        axes.errorbar(
            [at],
            [last.estimate],
            yerr=[[last.estimate - last.low], [last.high - last.estimate]],
            color=colour,
            marker=marker,
            ms=4,
            capsize=2,
        )
    axes.set(xlabel="optimizer step", ylabel="pass@1", ylim=(0, 1))
    _finish(axes)
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    return figure


def _draw_band(axes: "Axes", rows: Sequence[Band], colour: str, **line: Any) -> None:
    """Draw the mean over the seeds as a line, and their range behind it."""
    steps, means, lows, highs = zip(*rows, strict=True)
    axes.plot(steps, means, color=colour, **line)
    axes.fill_between(steps, lows, highs, color=colour, alpha=0.15, lw=0)


def _draw_training(groups: dict[str, list[Run]], label: str) -> "Figure":
    """Draw panels of what is recorded at each step."""
    figure = new_figure(7.4, "Training, step by step", label)
    grid = figure.add_gridspec(3, 2, left=0.09, right=0.97, top=0.9, bottom=0.12, hspace=0.5)
    for panel, (key, title, unit) in enumerate(_PANELS):
        axes = figure.add_subplot(grid[panel // 2, panel % 2])
        for number, (name, runs) in enumerate(groups.items()):
            colour, dash, _ = _STYLES[number % len(_STYLES)]
            if rows := band([run.steps for run in runs], key):
                _draw_band(axes, rows, colour, ls=dash, lw=1.2, label=name)
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_ylabel(unit, fontsize=8)
        axes.set_xlabel("optimizer step", fontsize=8)
        _finish(axes)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncols=len(names), frameon=False)
    return figure


def _draw_parity(runs: Sequence[Run], label: str) -> "Figure":
    """Draw each update's distance to the reference with its budget, and the replica's drift."""
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(3.8, "Distance to the reference, step by step", label)
    grid = figure.add_gridspec(1, 3, left=0.1, right=0.98, top=0.76, bottom=0.16, wspace=0.45)
    for panel, what in enumerate(("loss", "gradient", "drift")):
        axes = figure.add_subplot(grid[0, panel])
        for number, run in enumerate(runs):
            colour, _, marker = _STYLES[number % len(_STYLES)]
            distances = (
                series(run.drift, "weights")
                if what == "drift"
                else series(run.parity, f"parity/{what}_relative")
            )
            values = [max(value, _LEAST) for value in distances.values()]
            name = f"{run.name} seed {run.seed}"
            axes.plot(
                [*distances], values, color=colour, ls="none", marker=marker, ms=3, label=name
            )
            if what != "drift":
                budgets = series(run.parity, f"parity/{what}_budget")
                legend = None if number else "budget"
                axes.plot([*budgets], [*budgets.values()], color=INK, lw=1, label=legend)
        title = "weights: drift ÷ way gone" if what == "drift" else f"{what}: relative distance"
        axes.set_title(title, fontsize=9, loc="left")
        axes.set(yscale="log", xlabel="optimizer step")
        axes.set_ylim(*whole_decades(*axes.get_ylim()))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter(lambda value, position: f"{value:.0e}")
        axes.yaxis.set_minor_formatter(lambda value, position: "")
        _finish(axes)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="upper left", ncols=4, frameon=False, bbox_to_anchor=(0, 0.92)
    )
    return figure


def whole_decades(low: float, high: float) -> tuple[float, float]:
    """Round a range to powers of ten, so that a log axis has at least two labels."""
    return 10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high))


def _finish(axes: "Axes") -> None:
    """Draw grid and frame."""
    axes.grid(color=FAINT, lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors=MUTED)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
