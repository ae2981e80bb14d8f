"""Says in sentences what a benchmark shows; its figures choose the sentences."""

import itertools
import statistics
from collections.abc import Sequence

from sdpo.benchmark.results.load_runs import (
    CANNOT_DISTINGUISH,
    Run,
    outcome,
    paired,
    series,
)
from sdpo.benchmark.scoring.intervals import Interval, bootstrap

# Steps at either end of a run that are compared.
_END_STEPS = 10
# A run that ended this much below its own best got worse on the way.
_FAR_BELOW = 0.1
COVERAGE = "self_distillation/reprompt_sample_fraction"
_MEASURES = (
    (COVERAGE, "share of attempts with a teacher"),
    ("teacher/ahead_on_failed", "teacher's log-prob gain on failed attempts"),
    ("teacher/ahead_on_passed", "on passed attempts"),
    ("teacher/divergence_per_token", "divergence per token"),
    ("entropy", "entropy per token"),
)


def shown(interval: Interval, *, signed: bool = False) -> str:
    """Show an estimate with its interval."""
    sign = "+" if signed else ""
    low, high = (f"{x:{sign}.3f}" for x in (interval.low, interval.high))
    return f"{interval.estimate:{sign}.3f} [{low}, {high}]"


def findings(groups: dict[str, list[Run]]) -> list[str]:
    """Write a sentence or more for each configuration, and one for each pair."""
    sentences = [
        " ".join([_held_out(name, runs), _training(runs), _measures(runs)]).strip()
        for name, runs in groups.items()
    ]
    return [*sentences, *comparisons(groups)]


def comparisons(groups: dict[str, list[Run]]) -> list[str]:
    """Write a sentence for each pair of configurations."""
    sentences = []
    for first, second in itertools.combinations(groups, 2):
        verdict = paired(groups[first], groups[second]).verdict
        sentences.append(
            f"{first} against {second}: the runs cannot be told apart."
            if verdict == CANNOT_DISTINGUISH
            else f"{first} against {second}: {verdict} ended higher."
        )
    return sentences


def _held_out(name: str, runs: Sequence[Run]) -> str:
    """Say whether pass@1 rose, and whether it fell again."""
    gain = outcome(runs).gain
    risen = sum(run.last["low"] > run.evals[0]["high"] for run in runs)
    word = "rose" if gain.low > 0 else "fell" if gain.high < 0 else "did not clearly change"
    text = (
        f"{name}: pass@1 {word} ({shown(gain, signed=True)}); in {risen} of {len(runs)} seeds "
        "the last interval lies above the first."
    )
    if all(run.evals[index]["pass_at_1"] == 0 for run in runs for index in (0, -1)):
        text += f" Nothing was solved at either end: a gain below {gain.high:.3f} cannot be told."
    peak = best_on_the_way(runs)
    last = statistics.fmean(run.last["pass_at_1"] for run in runs)
    if peak - last > _FAR_BELOW:
        text += f" It ended {peak - last:.2f} below its own best: it got worse on the way."
    if unfinished := [str(run.seed) for run in runs if not run.finished]:
        text += f" Seed {', '.join(unfinished)} is unfinished."
    return text


def best_on_the_way(runs: Sequence[Run]) -> float:
    """Average each seed's highest pass@1, which is biased upwards."""
    return statistics.fmean(max(row["pass_at_1"] for row in run.evals) for run in runs)


def _ends(run: Run, key: str) -> tuple[list[float], list[float]]:
    """Take a column's values of the first and of the last steps."""
    values = [*series(run.steps, key).values()]
    return values[:_END_STEPS], values[-_END_STEPS:]


def _training(runs: Sequence[Run]) -> str:
    """Say how the training reward changed, seed by seed."""
    changes, clear = [], 0
    for run in runs:
        rewards = _ends(run, "reward")
        if sum(map(len, rewards)) < 2 * _END_STEPS:
            return ""
        first, last = (bootstrap(end, limits=(0, 1), resamples=2000) for end in rewards)
        changes.append(f"{first.estimate:.2f} to {last.estimate:.2f}")
        clear += last.low > first.high
    return (
        f"Training reward, first {_END_STEPS} to last {_END_STEPS} steps: {', '.join(changes)}; "
        f"the intervals lie apart, upwards, in {clear} of {len(runs)} seeds."
    )


def _measures(runs: Sequence[Run]) -> str:
    """Say what explains it: coverage, how far the teacher is ahead, divergence, entropy."""
    mean, changes = statistics.fmean, []
    for key, what in _MEASURES:
        ends = [_ends(run, key) for run in runs]
        if all(first and last for first, last in ends):
            first, last = (mean(map(mean, values)) for values in zip(*ends, strict=True))
            changes.append(f"{what} {first:.3g} to {last:.3g}")
    return f"From the first to the last steps: {', '.join(changes)}." if changes else ""
