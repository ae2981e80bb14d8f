"""Benchmark runs as they are written, with figures that the test gives."""

from pathlib import Path
from typing import Any

from sdpo.benchmark.runs.records import Evaluation, Records, write_json

PROBLEMS = 60


def evaluation(step: int, passed: int) -> Evaluation:
    """One completion for each of the problems, of which the first `passed` ones pass."""
    rate = passed / PROBLEMS
    return Evaluation(
        step=step,
        pass_at_1=rate,
        low=rate - 0.1,
        high=rate + 0.1,
        problems=PROBLEMS,
        samples=1,
        passes={str(11 + i): int(i < passed) for i in range(PROBLEMS)},
        results=[],
    )


def write_run(
    folder: Path,
    name: str,
    seed: int,
    passed: list[int],
    *,
    sha: str = "0" * 64,
    audited: bool = False,
) -> None:
    """Write the files of a run into `folder/name/seed-N`.

    Args:
        folder: of all runs.
        name: of the configuration.
        seed: of the run.
        passed: problems solved at each evaluation, one a step.
        sha: of the problems.
        audited: whether the first step left its budget and the others were inconclusive.
    """
    place = folder / name / f"seed-{seed}"
    place.mkdir(parents=True)
    settings = {"method": "sdpo", "seed": seed, "threads": 1, "model": {"name": "embedded"}}
    environment = {"packages": {"torch": "2"}, "git_commit": None, "cpu_capability": "X"}
    facts = {"data": {"data_sha256": sha, "origin": "o"}, "isolation": ["seccomp"]}
    write_json(place / "run.json", {"settings": settings, "environment": environment, **facts})
    records: Any = Records(place)
    for step, count in enumerate(passed):
        records.evals.append(evaluation(step, count))
    for step in range(1, len(passed)):
        records.steps.append({"step": step, "reward": 0.5, "num_tokens": 100.0, "grad_norm": 1})
        records.cost.append({"step": step, "seconds": 0.5, "peak_memory_mib": 100.0})
        if audited:
            row = {"parity/first_moved": 0 if step > 1 else 13, "parity/inconclusive": step > 1}
            for what in ("loss", "gradient"):
                row |= {f"parity/{what}_relative": 1e-7 * step, f"parity/{what}_budget": 1e-5}
            records.parity.append({"step": step, **row})
    sample = {"step": 1, "completion": "<b>x</b>", "reward": 0.0, "feedback": None}
    records.samples.append({**sample, "teacher_prompt": "p", "help": "none"})
