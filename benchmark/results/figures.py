"""Plots of a benchmark report; one style, legible in grey: methods differ by dash and marker."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sdpo.benchmark.results.load_runs import Run, band, by_name, interval_at
from sdpo.parity.render.figures import FAINT, INK, MUTED, new_figure
from sdpo.parity.render.plots import Plot, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOOKS = (
    ("#2f6fb3", "-", "o"),
    ("#b3261e", "--", "s"),
    ("#1a7f4b", "-.", "^"),
    ("#d99a00", ":", "D"),
    ("#6f42c1", (0, (5, 1, 1, 1)), "v"),
    ("#57606a", (0, (1, 1)), "P"),
)
LEAST = 1e-10
PANELS = (
    ("reward", "training reward", "mean fraction of tests passed"),
    ("self_distillation/reprompt_sample_fraction", "coverage", "share of rows with a teacher"),
    ("teacher/divergence_per_token", "divergence", "teacher to student, nats per token"),
    ("teacher/ahead_on_failed", "teacher on failed attempts", "log-prob gain in nats"),
    ("grad_norm", "gradient", "norm before clipping"),
    ("completions/mean_length", "length", "tokens per completion"),
)


def figures(runs: Sequence[Run]) -> list[Plot]:
    """Every plot for which there are data."""
    groups = by_name(runs)
    problems = runs[0].last()["problems"]
    seeds = max(len(group) for group in groups.values())
    label = f"n = {problems} problems, {seeds} seed{'s' if seeds > 1 else ''}"
    made = [
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
            png(lambda: draw_training(groups, label)),
        ),
    ]
    audited = [run for run in runs if run.records["parity"]]
    if audited:
        made.append(
            Plot(
                "loss_difference.png",
                "Distance to the reference, step by step",
                "Relative distance of loss and gradient to the same update by the reference; the "
                "line is the budget. Drift: distance to a replica that the reference alone trains "
                "from the same rollouts. Exact agreement is drawn at 1e-10.",
                png(lambda: draw_parity(audited, label)),
            )
        )
    return made


def draw_pass(groups: dict[str, list[Run]], label: str) -> "Figure":
    """pass@1 over steps."""
    figure = new_figure(3.8, "pass@1 on held-out problems", label)
    axes = figure.add_axes((0.09, 0.13, 0.72, 0.72))
    greatest = 0
    for place, (name, runs) in enumerate(groups.items()):
        colour, dash, marker = LOOKS[place % len(LOOKS)]
        rows = band(runs, "evals", "pass_at_1")
        steps = [row[0] for row in rows]
        greatest = max(greatest, *steps)
        axes.plot(
            steps, [row[1] for row in rows], color=colour, ls=dash, marker=marker, ms=4, label=name
        )
        axes.fill_between(
            steps, [r[2] for r in rows], [r[3] for r in rows], color=colour, alpha=0.15, lw=0
        )
        last = interval_at(runs, steps[-1])
        at = steps[-1] * (1.03 + 0.02 * place)
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
    finish(axes)
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    return figure


def draw_training(groups: dict[str, list[Run]], label: str) -> "Figure":
    """Panels of what is recorded at each step."""
    figure = new_figure(7.4, "Training, step by step", label)
    grid = figure.add_gridspec(3, 2, left=0.09, right=0.97, top=0.9, bottom=0.12, hspace=0.5)
    for place, (key, title, unit) in enumerate(PANELS):
        axes = figure.add_subplot(grid[place // 2, place % 2])
        for order, (name, runs) in enumerate(groups.items()):
            colour, dash, _ = LOOKS[order % len(LOOKS)]
            rows = band(runs, "steps", key)
            if not rows:
                continue
            steps = [row[0] for row in rows]
            axes.plot(steps, [row[1] for row in rows], color=colour, ls=dash, lw=1.2, label=name)
            axes.fill_between(
                steps, [r[2] for r in rows], [r[3] for r in rows], color=colour, alpha=0.15, lw=0
            )
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_ylabel(unit, fontsize=8)
        axes.set_xlabel("optimizer step", fontsize=8)
        finish(axes)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncols=len(names), frameon=False)
    return figure


def draw_parity(runs: Sequence[Run], label: str) -> "Figure":
    """Distance of each update to the reference with its budget, and the drift of the replica."""
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(3.8, "Distance to the reference, step by step", label)
    grid = figure.add_gridspec(1, 3, left=0.1, right=0.98, top=0.76, bottom=0.16, wspace=0.45)
    for place, what in enumerate(("loss", "gradient", "drift")):
        axes = figure.add_subplot(grid[0, place])
        for order, run in enumerate(runs):
            colour, _, marker = LOOKS[order % len(LOOKS)]
            kind, key = (
                ("drift", "weights") if what == "drift" else ("parity", f"parity/{what}_relative")
            )
            steps, values = run.series(kind, key)
            shown = [max(value, LEAST) for value in values]
            name = f"{run.name} seed {run.seed}"
            axes.plot(steps, shown, color=colour, ls="none", marker=marker, ms=3, label=name)
            if what != "drift":
                steps, values = run.series("parity", f"parity/{what}_budget")
                axes.plot(steps, values, color=INK, lw=1, label="budget" if not order else None)
        title = "weights: drift ÷ way gone" if what == "drift" else f"{what}: relative distance"
        axes.set_title(title, fontsize=9, loc="left")
        axes.set(yscale="log", xlabel="optimizer step")
        axes.set_ylim(*whole_decades(*axes.get_ylim()))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter(lambda value, place: f"{value:.0e}")
        axes.yaxis.set_minor_formatter(lambda value, place: "")
        finish(axes)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="upper left", ncols=4, frameon=False, bbox_to_anchor=(0, 0.92)
    )
    return figure


def whole_decades(low: float, high: float) -> tuple[float, float]:
    """The powers of ten around a range, so that a log axis has at least two labels."""
    return 10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high))


def finish(axes: "Axes") -> None:
    """Grid and frame."""
    axes.grid(color=FAINT, lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors=MUTED)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
