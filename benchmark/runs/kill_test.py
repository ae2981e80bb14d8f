"""Kills a run at random moments and starts it again: `python -m sdpo.benchmark.runs.kill_test`.

An uninterrupted short run is made first. Then runs with the same settings are killed by SIGKILL at
random moments and started again, until so many kills have happened. After each kill the records
must be readable and hold nothing but rows of the uninterrupted run, in order; at each end records,
audit, replica and weights must be those of the uninterrupted run, bit for bit. Clock and memory
(`cost.jsonl`) are left out. What is imported is imported once, before the runs are forked, so that
kills meet the run itself.
"""

import argparse
import multiprocessing
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sdpo.benchmark.runs.records import FILES, Records
from sdpo.benchmark.runs.settings import Settings, load

SHORT = {
    "train.max_steps": 6,
    "train.per_device_train_batch_size": 8,
    "eval.limit": 12,
    "eval.every": 3,
    "records.checkpoint_every": 2,
    "records.samples_every": 2,
}
SAME = tuple(name for name in FILES if name != "cost")


class DamageError(AssertionError):
    """A killed run lost or changed something."""


def contents(folder: Path) -> dict[str, bytes]:
    """What must be the same in every repetition of a finished run."""
    names = [f"{name}.jsonl" for name in SAME]
    names += ["model/model.safetensors", "parity/drift.csv"]
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}


def rows_of(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Every complete row of every kind."""
    return {name: Records(folder).read(name) for name in SAME}


def check_state(folder: Path, whole: Path) -> None:
    """What a kill left must be readable and the beginning of the uninterrupted run.

    Raises:
        DamageError: a row is not one of the uninterrupted run, or out of order.
    """
    expected = rows_of(whole)
    for name, rows in rows_of(folder).items():
        if rows != expected[name][: len(rows)]:
            raise DamageError(f"{folder}: {name}.jsonl is not the beginning of {whole}'s")


def check_end(folder: Path, whole: Path) -> None:
    """A finished run must be the uninterrupted one, bit for bit.

    Raises:
        DamageError: a file differs or is missing.
    """
    found, expected = contents(folder), contents(whole)
    if odd := [
        name for name in sorted(found.keys() | expected) if found.get(name) != expected.get(name)
    ]:
        raise DamageError(f"{folder}: {', '.join(odd)} differ from {whole}")


def start(settings: Settings, folder: Path) -> Any:
    """Start the run in a process of its own."""
    from sdpo.benchmark.runs.run import run

    process = multiprocessing.get_context("fork").Process(target=run, args=(settings, folder))
    process.start()
    return process


def finish(settings: Settings, folder: Path) -> float:
    """Run to the end; returns the seconds.

    Raises:
        DamageError: the run failed.
    """
    began = time.monotonic()
    process = start(settings, folder)
    process.join()
    if process.exitcode:
        raise DamageError(f"{folder}: the run ended with exit code {process.exitcode}")
    return time.monotonic() - began


def killed(settings: Settings, folder: Path, after: float) -> bool:
    """Start the run and kill it after some seconds; False if it was done before."""
    process = start(settings, folder)
    process.join(after)
    process.kill()  # nothing happens to a process that has ended, maybe just now
    process.join()
    if process.exitcode == -signal.SIGKILL:
        return True
    if process.exitcode:
        raise DamageError(f"{folder}: the run ended with exit code {process.exitcode}")
    return False


def torment(settings: Settings, out: Path, kills: int, seed: int = 0) -> dict[str, Any]:
    """Kill runs until there were so many kills; returns what happened.

    Raises:
        DamageError: something was lost or changed.
    """
    whole, generator = out / "whole", random.Random(seed)
    seconds, done, runs, steps = finish(settings, whole), 0, 0, []
    while done < kills:
        folder, runs = out / f"run-{runs}", runs + 1
        while done < kills and killed(settings, folder, generator.uniform(0.3, 1.1) * seconds):
            done += 1
            check_state(folder, whole)
            steps.append(len(Records(folder).read("steps")))
            print(
                f"kill {done} of {kills}: {steps[-1]} steps recorded", file=sys.stderr, flush=True
            )
        finish(settings, folder)
        check_end(folder, whole)
    return {"kills": done, "runs": runs, "steps": steps, "files": sorted(contents(whole))}


def main() -> None:
    """Torment a configuration and say what happened."""
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
            found = torment(settings, Path(folder), chosen.kills, chosen.seed)
        print(
            f"DONE {config}: {found['kills']} kills in {found['runs']} runs, at "
            f"{', '.join(map(str, found['steps']))} of {settings.train['max_steps']} steps; "
            f"bit-identical: {', '.join(found['files'])}"
        )


if __name__ == "__main__":
    main()
