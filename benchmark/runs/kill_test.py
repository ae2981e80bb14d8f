"""Kills a run at random moments and starts it again: `python -m sdpo.benchmark.runs.kill_test`.

An uninterrupted short run is made first. Then runs with the same settings are killed by SIGKILL at
random moments and started again, until `--kills` kills have happened. After each kill the records
must be readable and hold nothing but rows of the uninterrupted run, in order; at each end records,
audit, replica and weights must be those of the uninterrupted run, bit for bit. Clock and memory
(`cost.jsonl`) are left out. Modules are imported once, before the runs are forked, so that kills
meet the run itself.
"""

import argparse
import multiprocessing
import random
import signal
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

from sdpo.benchmark.runs.records import Records
from sdpo.benchmark.runs.settings import Settings, load

SHORT = {
    "train.max_steps": 6,
    "train.per_device_train_batch_size": 8,
    "eval.limit": 12,
    "eval.every": 3,
    "records.checkpoint_every": 2,
    "records.samples_every": 2,
}


class DamageError(AssertionError):
    """A killed run lost or changed something."""


class KillCount(NamedTuple):
    """Says how runs were killed: steps recorded at each kill, and the files found identical."""

    runs: int
    steps: list[int]
    files: list[str]


def _contents(folder: Path) -> dict[str, bytes]:
    """Read what must be the same in every repetition of a finished run."""
    names = [file.path.name for file in Records(folder).repeatable()]
    names += ["model/model.safetensors", "parity/drift.csv"]
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}


def check_state(folder: Path, uninterrupted: Path) -> None:
    """Check that what a kill left is readable and the beginning of the uninterrupted run.

    Raises:
        DamageError: a row is not one of the uninterrupted run, or out of order.
    """
    files = zip(Records(folder).repeatable(), Records(uninterrupted).repeatable(), strict=True)
    for file, expected in files:
        rows = file.read()
        if rows != expected.read()[: len(rows)]:
            raise DamageError(f"{folder}: {file.path.name} is not the beginning of {expected.path}")


def check_end(folder: Path, uninterrupted: Path) -> None:
    """Check that a finished run is the uninterrupted one, bit for bit.

    Raises:
        DamageError: a file differs or is missing.
    """
    actual, expected = _contents(folder), _contents(uninterrupted)
    names = sorted(actual.keys() | expected)
    if damaged := [name for name in names if actual.get(name) != expected.get(name)]:
        raise DamageError(f"{folder}: {', '.join(damaged)} differ from {uninterrupted}")


def _start(settings: Settings, folder: Path) -> BaseProcess:
    """Start the run in a process of its own."""
    from sdpo.benchmark.runs.run import run

    process = multiprocessing.get_context("fork").Process(target=run, args=(settings, folder))
    process.start()
    return process


def _finish(settings: Settings, folder: Path) -> float:
    """Run to the end; returns the seconds.

    Raises:
        DamageError: the run failed.
    """
    began = time.monotonic()
    process = _start(settings, folder)
    process.join()
    if process.exitcode:
        raise DamageError(f"{folder}: the run ended with exit code {process.exitcode}")
    return time.monotonic() - began


def _was_killed(settings: Settings, folder: Path, after: float) -> bool:
    """Start the run and kill it after some seconds; False if it was done before."""
    process = _start(settings, folder)
    process.join(after)
    process.kill()  # nothing happens to a process that has ended, maybe just now
    process.join()
    if process.exitcode == -signal.SIGKILL:
        return True
    if process.exitcode:
        raise DamageError(f"{folder}: the run ended with exit code {process.exitcode}")
    return False


def kill_runs(settings: Settings, out: Path, kills: int, seed: int = 0) -> KillCount:
    """Kill runs until there were so many kills, and check what each of them left.

    Raises:
        DamageError: something was lost or changed.
    """
    uninterrupted, generator = out / "uninterrupted", random.Random(seed)
    seconds, runs = _finish(settings, uninterrupted), 0
    steps: list[int] = []
    while len(steps) < kills:
        folder, runs = out / f"run-{runs}", runs + 1
        while len(steps) < kills and _was_killed(
            settings, folder, generator.uniform(0.3, 1.1) * seconds
        ):
            check_state(folder, uninterrupted)
            steps.append(len(Records(folder).steps.read()))
            count = f"kill {len(steps)} of {kills}"
            print(f"{count}: {steps[-1]} steps recorded", file=sys.stderr, flush=True)
        _finish(settings, folder)
        check_end(folder, uninterrupted)
    return KillCount(runs, steps, sorted(_contents(uninterrupted)))


def main() -> None:
    """Kill runs of each configuration and say what happened."""
    import trl  # noqa: F401  # pyright: ignore[reportUnusedImport]
    from peft import PeftModel  # noqa: F401
    from transformers import AutoModelForCausalLM  # noqa: F401

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configs", default="sdpo,sdpo-audit")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    chosen = parser.parse_args()
    for config in chosen.configs.split(","):
        settings = load(config, [*(f"{k}={v}" for k, v in SHORT.items()), *chosen.set])
        with tempfile.TemporaryDirectory() as folder:
            count = kill_runs(settings, Path(folder), chosen.kills, chosen.seed)
        print(
            f"DONE {config}: {len(count.steps)} kills in {count.runs} runs, at "
            f"{', '.join(map(str, count.steps))} of {settings.train['max_steps']} steps; "
            f"bit-identical: {', '.join(count.files)}"
        )


if __name__ == "__main__":
    main()
