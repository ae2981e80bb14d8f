"""A small sweep on the validation split: `python -m sdpo.benchmark.sweep`.

Each method gets the same number of trials, steps, rollouts and seeds. Test problems are not
touched. Prints a table; the runs stay in a folder and continue like all others.
"""

import argparse
import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdpo.benchmark.bench import Job, jobs, run_all
from sdpo.benchmark.records import Records, read_json
from sdpo.benchmark.settings import load

STEPS = 60
COMMON = {
    "data.eval_split": "validation",
    "train.max_steps": STEPS,
    "eval.every": 20,
    "records.checkpoint_every": STEPS,
}
LEARNING_RATES = (1e-4, 3e-4, 1e-3)
TRIALS: dict[str, list[dict[str, Any]]] = {
    "grpo": [
        {"train.learning_rate": rate, "train.scale_rewards": scale}
        for rate, scale in itertools.product((*LEARNING_RATES, 2e-3), ("group", "none"))
    ],
    "sdpo": [
        *(
            {"train.learning_rate": rate, "sdpo.teacher_update_rate": moved}
            for rate, moved in itertools.product(LEARNING_RATES, (0.01, 0.05))
        ),
        {"train.learning_rate": 3e-4, "sdpo.alpha": 1.0},
        {"train.learning_rate": 3e-4, "sdpo.include_environment_feedback": True},
    ],
    "hybrid": [
        *(
            {"train.learning_rate": rate, "sdpo.hybrid_lambda": share}
            for rate, share in itertools.product(LEARNING_RATES, (0.5, 0.9))
        ),
        {"train.learning_rate": 3e-4, "sdpo.alpha": 1.0},
        {"train.learning_rate": 3e-4, "sdpo.include_environment_feedback": True},
    ],
}


def label(trial: dict[str, Any]) -> str:
    """What a trial changes, as it is written on the command line."""
    return " ".join(f"{name.partition('.')[2]}={value}" for name, value in trial.items())


def trials(
    methods: Sequence[str], seeds: Sequence[int], out: Path, options: Sequence[str]
) -> dict[tuple[str, int], list[Job]]:
    """The runs of each trial, one for each seed; checks all settings before anything starts."""
    found = {}
    for method in methods:
        for place, trial in enumerate(TRIALS[method]):
            changes = [f"{name}={value}" for name, value in (COMMON | trial).items()]
            steps = load(method, [*changes, *options])["train"]["max_steps"]
            given = [f"--set={text}" for text in (*changes, *options)]
            found[method, place] = jobs([method], seeds, out / str(place), given, steps)
    return found


def row(method: str, place: int, runs: Sequence[Job]) -> dict[str, Any]:
    """Means over the seeds of one trial."""
    evals = [Records(job.folder).read("evals") for job in runs]
    steps = [Records(job.folder).read("steps") for job in runs]
    mean = statistics.fmean
    return {
        "method": method,
        "trial": label(TRIALS[method][place]),
        "first": mean(rows[0]["pass_at_1"] for rows in evals),
        "last": mean(rows[-1]["pass_at_1"] for rows in evals),
        "best": mean(max(one["pass_at_1"] for one in rows) for rows in evals),
        "reward": mean(mean(one["reward"] for one in rows[-10:]) for rows in steps),
        "seconds": mean(read_json(job.folder / "summary.json")["training_seconds"] for job in runs),
        "problems": evals[0][-1]["problems"],
        "seeds": len(runs),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The sweep as Markdown; the trial with the highest last pass@1 of each method is bold."""
    best: dict[str, dict[str, Any]] = {}
    for one in rows:
        chosen = best.setdefault(one["method"], one)
        if (one["last"], one["reward"]) > (chosen["last"], chosen["reward"]):
            best[one["method"]] = one
    n, seeds = rows[0]["problems"], rows[0]["seeds"]
    lines = [
        f"pass@1 on {n} validation problems, mean of {seeds} seeds",
        "",
        "| method | trial | before | after | best on the way | last rewards | seconds |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for one in rows:
        trial = f"**{one['trial']}**" if best[one["method"]] is one else one["trial"]
        values = " | ".join(f"{one[key]:.3f}" for key in ("first", "last", "best", "reward"))
        lines.append(f"| {one['method']} | {trial} | {values} | {one['seconds']:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Run the sweep and print its table."""
    from sdpo.cli.mbpp_bench import bar

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", default=",".join(TRIALS))
    parser.add_argument("--seeds", default="11", help="not those of the benchmark")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("reports/runs/sweep"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    chosen = parser.parse_args()
    seeds = [int(one) for one in chosen.seeds.split(",")]
    found = trials(chosen.methods.split(","), seeds, chosen.out, chosen.set)
    todo = [job for runs in found.values() for job in runs]
    with bar(sum(job.steps for job in todo), "sweep") as show:
        run_all(todo, chosen.jobs, show)
    text = table([row(*key, runs) for key, runs in found.items()])
    (chosen.out / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
