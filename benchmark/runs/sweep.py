"""A small sweep on the validation split: `sdpo mbpp sweep`.

Each method gets the same number of trials, steps, rollouts and seeds. Test problems are not
touched. Prints a table; the runs stay in a folder and continue like all others.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdpo.benchmark.runs.records import Records, read_json
from sdpo.benchmark.runs.run_many import Job, jobs
from sdpo.benchmark.runs.settings import load

STEPS = 30
COMMON = {
    "data.eval_split": "validation",
    "train.max_steps": STEPS,
    "eval.every": STEPS // 2,
    "records.checkpoint_every": STEPS,
}
RATES = tuple({"train.learning_rate": rate} for rate in (1e-4, 2e-4, 4e-4, 8e-4))
# Tried at the best learning rate of each method.
VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
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
    """Settings that are tried with a method, and its runs, one for each seed."""

    method: str
    changes: dict[str, Any]
    runs: tuple[Job, ...]

    @property
    def label(self) -> str:
        """What it changes, as on the command line but for the section."""
        return " ".join(f"{name.partition('.')[2]}={x}" for name, x in self.changes.items())


def trial(
    method: str, changes: dict[str, Any], seeds: Sequence[int], out: Path, options: Sequence[str]
) -> Trial:
    """A trial; its settings are checked before anything starts."""
    given = [*(f"{name}={value}" for name, value in (COMMON | changes).items()), *options]
    steps = load(method, given).train["max_steps"]
    folder = out / "-".join(f"{name.rpartition('.')[2]}={x}" for name, x in changes.items())
    found = jobs([method], seeds, folder, [f"--set={text}" for text in given], steps)
    return Trial(method, changes, tuple(found))


def best_of(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row with the highest last pass@1, among equals with the highest last rewards."""
    return max(rows, key=lambda one: (one["last"], one["reward"]))


def sweep(
    methods: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    options: Sequence[str],
    run: Callable[[list[Job]], None],
    stages: int = 2,
) -> list[dict[str, Any]]:
    """Learning rates first, then each method's variants at its best one; a row for each trial."""
    first = [trial(m, one, seeds, out, options) for m in methods for one in RATES]
    run([job for one in first for job in one.runs])
    rows = [row(one) for one in first]
    if stages > 1:
        rates = {
            m: best_of([one for one in rows if one["method"] == m])["changes"] for m in methods
        }
        second = [
            trial(m, rates[m] | one, seeds, out, options) for m in methods for one in VARIANTS[m]
        ]
        run([job for one in second for job in one.runs])
        rows += [row(one) for one in second]
    return rows


def row(tried: Trial) -> dict[str, Any]:
    """Means over the seeds of one trial."""
    evals = [Records(job.folder).read("evals") for job in tried.runs]
    steps = [Records(job.folder).read("steps") for job in tried.runs]
    seconds = [read_json(job.folder / "summary.json")["training_seconds"] for job in tried.runs]
    mean = statistics.fmean
    return {
        "method": tried.method,
        "trial": tried.label,
        "changes": tried.changes,
        "first": mean(rows[0]["pass_at_1"] for rows in evals),
        "last": mean(rows[-1]["pass_at_1"] for rows in evals),
        "best": mean(max(one["pass_at_1"] for one in rows) for rows in evals),
        "reward": mean(mean(one["reward"] for one in rows[-10:]) for rows in steps),
        "seconds": mean(seconds),
        "problems": evals[0][-1]["problems"],
        "steps": steps[0][-1]["step"],
        "seeds": len(tried.runs),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The sweep as Markdown; the best trial of each method is bold."""
    methods = dict.fromkeys(one["method"] for one in rows)
    best = [best_of([one for one in rows if one["method"] == method]) for method in methods]
    one = rows[0]
    lines = [
        f"pass@1 on {one['problems']} validation problems, greedy, after {one['steps']} steps, "
        f"{one['seeds']} seed(s); `rewards`: mean of the last ten steps.",
        "",
        "| method | settings | before | after | best on the way | rewards | seconds |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for one in sorted(rows, key=lambda each: list(methods).index(each["method"])):
        shown = f"**{one['trial']}**" if one in best else one["trial"]
        values = " | ".join(f"{one[key]:.3f}" for key in ("first", "last", "best", "reward"))
        lines.append(f"| {one['method']} | {shown} | {values} | {one['seconds']:.0f} |")
    return "\n".join(lines)
