"""Searches a few settings on the validation split, for `sdpo mbpp sweep`.

Each method gets the same number of trials, steps, rollouts and seeds. Test problems are not
touched. Prints a table; the runs stay in a folder and continue like all others.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdpo.benchmark.runs.records import Records, read_json
from sdpo.benchmark.runs.run_many import Job, jobs
from sdpo.benchmark.runs.settings import load
from sdpo.runtime.markdown_table import markdown_table

STEPS = 30
COMMON = {
    "data.eval_split": "validation",
    "train.max_steps": STEPS,
    "eval.every": STEPS // 2,
    "records.checkpoint_every": STEPS,
}
Changes = Mapping[str, float | str]
"""Settings by their dotted names."""
RATES: tuple[Changes, ...] = tuple(
    {"train.learning_rate": rate} for rate in (1e-4, 2e-4, 4e-4, 8e-4)
)
# Tried at the best learning rate of each method.
VARIANTS: dict[str, tuple[Changes, ...]] = {
    "grpo": (
        {"train.scale_rewards": "none"},
        {"train.beta": 0.02},
        {"train.max_grad_norm": 0.3},
    ),
    "sdpo": (
        {"sdpo.teacher_update_rate": 0.2},
        {"sdpo.alpha": 1.0},
        {"sdpo.include_environment_feedback": True},
    ),
    "hybrid": (
        {"sdpo.teacher_update_rate": 0.2},
        {"sdpo.alpha": 1.0},
        {"sdpo.hybrid_lambda": 0.8},
    ),
}


@dataclass(frozen=True)
class Trial:
    """Names settings that are tried with a method, and the runs, one for each seed."""

    method: str
    changes: Changes
    runs: tuple[Job, ...]


@dataclass(frozen=True)
class TrialResult:
    """Holds a trial's pass@1, rewards and seconds: means over the seeds."""

    method: str
    changes: Changes
    first: float
    last: float
    best: float
    reward: float
    seconds: float
    problems: int
    steps: int
    seeds: int

    @property
    def label(self) -> str:
        """Show the changes as on the command line but for the section."""
        return " ".join(f"{name.partition('.')[2]}={x}" for name, x in self.changes.items())


def _trial(
    method: str, changes: Changes, seeds: Sequence[int], out: Path, options: Sequence[str]
) -> Trial:
    """Prepare a trial; its settings are checked before anything starts.

    Args:
        method: packaged configuration.
        changes: what is tried.
        seeds: of its runs.
        out: folder of the sweep.
        options: further settings as `section.key=value`, which rule.
    """
    overrides = [*(f"{name}={value}" for name, value in {**COMMON, **changes}.items()), *options]
    steps = load(method, overrides).train["max_steps"]
    folder = out / "-".join(f"{name.rpartition('.')[2]}={x}" for name, x in changes.items())
    runs = jobs([method], seeds, folder, [f"--set={text}" for text in overrides], steps)
    return Trial(method, changes, tuple(runs))


def _best_of(method: str, results: Sequence[TrialResult]) -> TrialResult:
    """Choose the trial with the highest last pass@1, among equals with the highest rewards."""
    return max(
        (result for result in results if result.method == method),
        key=lambda result: (result.last, result.reward),
    )


def sweep(
    methods: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    options: Sequence[str],
    run: Callable[[list[Job]], None],
    stages: int = 2,
) -> list[TrialResult]:
    """Try learning rates first, then each method's variants at its best one.

    Args:
        methods: packaged configurations.
        seeds: of each trial's runs.
        out: folder of the runs.
        options: further settings as `section.key=value`, which rule.
        run: runs jobs to their end.
        stages: 1 leaves out the variants.
    """

    def tried(trials: list[Trial]) -> list[TrialResult]:
        run([job for trial in trials for job in trial.runs])
        return [_result(trial) for trial in trials]

    common = seeds, out, options
    results = tried([_trial(method, rate, *common) for method in methods for rate in RATES])
    if stages > 1:
        rates = {method: _best_of(method, results).changes for method in methods}
        results += tried(
            [
                _trial(method, {**rates[method], **variant}, *common)
                for method in methods
                for variant in VARIANTS[method]
            ]
        )
    return results


def _result(trial: Trial) -> TrialResult:
    records = [Records(job.folder) for job in trial.runs]
    evals = [record.evals.read() for record in records]
    steps = [record.steps.read() for record in records]
    mean = statistics.fmean
    return TrialResult(
        method=trial.method,
        changes=trial.changes,
        first=mean(rows[0]["pass_at_1"] for rows in evals),
        last=mean(rows[-1]["pass_at_1"] for rows in evals),
        best=mean(max(row["pass_at_1"] for row in rows) for rows in evals),
        reward=mean(mean(row["reward"] for row in rows[-10:]) for rows in steps),
        seconds=mean(
            read_json(job.folder / "summary.json")["training_seconds"] for job in trial.runs
        ),
        problems=evals[0][-1]["problems"],
        steps=int(steps[0][-1]["step"]),
        seeds=len(trial.runs),
    )


def table(results: Sequence[TrialResult]) -> str:
    """Show the sweep as Markdown; the best trial of each method is bold."""
    methods = list(dict.fromkeys(result.method for result in results))
    best = [_best_of(method, results) for method in methods]
    rows = []
    for result in sorted(results, key=lambda result: methods.index(result.method)):
        label = f"**{result.label}**" if result in best else result.label
        rates = (result.first, result.last, result.best, result.reward)
        rows.append(
            (result.method, label, *(f"{rate:.3f}" for rate in rates), f"{result.seconds:.0f}")
        )
    head = ("method", "settings", "before", "after", "best on the way", "rewards", "seconds")
    return (
        f"pass@1 on {results[0].problems} validation problems, greedy, after {results[0].steps} "
        f"steps, {results[0].seeds} seed(s); `rewards`: mean of the last ten steps.\n\n"
        f"{markdown_table(head, rows, left=2)}"
    )
