"""Runs the jobs of a benchmark side by side, each in a process of its own."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdpo.benchmark.runs.records import Records, read_json

_POLL_SECONDS = 0.5


class BenchError(RuntimeError):
    """A run of the benchmark failed."""


@dataclass(frozen=True)
class Job:
    """Describes one run: its command, its folder, and how many steps it will make."""

    name: str
    command: tuple[str, ...]
    folder: Path
    steps: int

    def done(self) -> int:
        """Count the steps that are recorded."""
        if (self.folder / "summary.json").is_file():
            return self.steps
        rows = Records(self.folder).cost.read()
        return int(rows[-1]["step"]) if rows else 0


def jobs(
    configs: Sequence[str], seeds: Sequence[int], out: Path, options: Sequence[str], steps: int
) -> list[Job]:
    """List the runs of a benchmark, seed by seed so that an early end leaves comparable runs.

    Args:
        configs: packaged configurations or TOML files.
        seeds: each configuration runs with each of them.
        out: folder that gets CONFIG/seed-N of each run.
        options: further ones of `sdpo mbpp run`.
        steps: that each run makes.
    """
    listed = []
    for seed in seeds:
        for config in configs:
            name = Path(config).stem
            folder = out / name / f"seed-{seed}"
            command = [sys.executable, "-m", "sdpo", "mbpp", "run", "--config", config]
            command += ["--seed", str(seed), "--out", str(folder), *options]
            listed.append(Job(f"{name} seed {seed}", tuple(command), folder, steps))
    return listed


def run_all(todo: Sequence[Job], parallel: int, progress: Callable[[int], None]) -> None:
    """Run all jobs, some at a time; ends the others if one fails or on Ctrl-C.

    Args:
        todo: the runs; finished ones cost a moment only.
        parallel: how many at a time.
        progress: told the steps done over all runs.

    Raises:
        BenchError: a run failed, with the last line that it printed.
    """
    waiting, running = list(todo), {}
    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                job = waiting.pop(0)
                job.folder.parent.mkdir(parents=True, exist_ok=True)
                with (job.folder.parent / f"{job.folder.name}.log").open("w") as log:
                    running[job] = subprocess.Popen(job.command, stdout=log, stderr=log)
            time.sleep(_POLL_SECONDS)
            for job, process in list(running.items()):
                if process.poll() is not None:
                    del running[job]
                    _check(job, process.returncode)
            progress(sum(job.done() for job in todo))
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()


def _check(job: Job, code: int) -> None:
    log = job.folder.parent / f"{job.folder.name}.log"
    if code:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise BenchError(f"{job.name} ended with exit code {code}: {lines[-1] if lines else ''}")
    if read_json(job.folder / "summary.json") is None:
        raise BenchError(f"{job.name} ended without a summary; see {log}")
