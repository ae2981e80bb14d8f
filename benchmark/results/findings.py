"""What the figures of a benchmark say, in sentences that the figures choose."""

import statistics
from collections.abc import Sequence

from sdpo.benchmark.results.load_runs import Run, outcome, paired
from sdpo.benchmark.scoring.intervals import Interval, bootstrap

# Steps at either end of a run that are compared.
ENDS = 10
FAR_BELOW = 0.1
COVERAGE = "self_distillation/reprompt_sample_fraction"
MEASURES = (
    (COVERAGE, "share of attempts with a teacher"),
    ("teacher/ahead_on_failed", "teacher's log-prob gain on failed attempts"),
    ("teacher/ahead_on_passed", "on passed attempts"),
    ("teacher/divergence_per_token", "divergence per token"),
    ("entropy", "entropy per token"),
)


def shown(interval: Interval, *, signed: bool = False) -> str:
    """An estimate with its interval."""
    sign = "+" if signed else ""
    low, high = (f"{x:{sign}.3f}" for x in (interval.low, interval.high))
    return f"{interval.estimate:{sign}.3f} [{low}, {high}]"


def findings(groups: dict[str, list[Run]]) -> list[str]:
    """A sentence or more for each configuration, and one for each pair."""
    said = [
        " ".join([held_out(name, runs), training(runs), measures(runs)]).strip()
        for name, runs in groups.items()
    ]
    return [*said, *comparisons(groups)]


def comparisons(groups: dict[str, list[Run]]) -> list[str]:
    """A sentence for each pair of configurations."""
    said, names = [], list(groups)
    for place, one in enumerate(names):
        for two in names[place + 1 :]:
            verdict = paired(groups[one], groups[two])["verdict"]
            said.append(
                f"{one} against {two}: the runs cannot be told apart."
                if verdict == "cannot distinguish"
                else f"{one} against {two}: {verdict} ended higher."
            )
    return said


def held_out(name: str, runs: Sequence[Run]) -> str:
    """Whether pass@1 rose, and whether it fell again."""
    gain = outcome(runs)["gain"]
    risen = sum(run.last()["low"] > run.records["evals"][0]["high"] for run in runs)
    word = "rose" if gain.low > 0 else "fell" if gain.high < 0 else "did not clearly change"
    said = (
        f"{name}: pass@1 {word} ({shown(gain, signed=True)}); in {risen} of {len(runs)} seeds "
        "the last interval lies above the first."
    )
    if all(run.records["evals"][place]["pass_at_1"] == 0 for run in runs for place in (0, -1)):
        said += f" Nothing was solved at either end: a gain below {gain.high:.3f} cannot be told."
    peak = statistics.fmean(max(e["pass_at_1"] for e in run.records["evals"]) for run in runs)
    last = statistics.fmean(run.last()["pass_at_1"] for run in runs)
    if peak - last > FAR_BELOW:
        said += f" It ended {peak - last:.2f} below its own best: it got worse on the way."
    if unfinished := [str(run.seed) for run in runs if not run.finished]:
        said += f" Seed {', '.join(unfinished)} is unfinished."
    return said


def ends(run: Run, key: str) -> tuple[list[float], list[float]]:
    """A column of the first and of the last steps."""
    values = run.series("steps", key)[1]
    return values[:ENDS], values[-ENDS:]


def training(runs: Sequence[Run]) -> str:
    """How the training reward changed, seed by seed."""
    changes, clear = [], 0
    for run in runs:
        first, last = ends(run, "reward")
        if len(first) + len(last) < 2 * ENDS:
            return ""
        one, two = (bootstrap(end, limits=(0, 1), resamples=2000) for end in (first, last))
        changes.append(f"{one.estimate:.2f} to {two.estimate:.2f}")
        clear += two.low > one.high
    return (
        f"Training reward, first {ENDS} to last {ENDS} steps: {', '.join(changes)}; the intervals "
        f"lie apart, upwards, in {clear} of {len(runs)} seeds."
    )


def measures(runs: Sequence[Run]) -> str:
    """What explains it: coverage, how far the teacher is ahead, divergence, entropy."""
    parts = []
    for key, what in MEASURES:
        both = [ends(run, key) for run in runs]
        if all(first and last for first, last in both):
            first = statistics.fmean(statistics.fmean(one) for one, _ in both)
            last = statistics.fmean(statistics.fmean(two) for _, two in both)
            parts.append(f"{what} {first:.3g} to {last:.3g}")
    return f"From the first to the last steps: {', '.join(parts)}." if parts else ""
