"""Runs go side by side; one that fails ends the others and is named with its last line."""

import sys
import time
from pathlib import Path

import pytest

from sdpo.benchmark.runs.records import Records, write_json
from sdpo.benchmark.runs.run_many import BenchError, Job, jobs, run_all


def job(folder: Path, name: str, code: str, steps: int = 3) -> Job:
    """A job that runs a program; `done` in it is the folder's summary."""
    program = f"from pathlib import Path; done = Path({str(folder / name)!r}); {code}"
    return Job(name, (sys.executable, "-c", program), folder / name, steps)


FINISH = "done.mkdir(); (done / 'summary.json').write_text('{}')"


def test_seeds_come_before_configurations(tmp_path):
    listed = jobs(["grpo", "a/mine.toml"], [1, 2], tmp_path, ["--quick"], 5)
    names = ["grpo seed 1", "mine seed 1", "grpo seed 2", "mine seed 2"]
    assert [each.name for each in listed] == names
    assert listed[1].folder == tmp_path / "mine" / "seed-1"
    ends = ("--config", "a/mine.toml", "--seed", "1", "--out", str(listed[1].folder), "--quick")
    assert listed[1].command[-7:] == ends


def test_steps_are_counted_from_the_records(tmp_path):
    watched = job(tmp_path, "a", "")
    assert watched.done() == 0
    watched.folder.mkdir()
    Records(watched.folder).cost.append({"step": 2, "seconds": 0.1})
    assert watched.done() == 2
    write_json(watched.folder / "summary.json", {})
    assert watched.done() == watched.steps


def test_all_run_to_their_end(tmp_path):
    told: list[int] = []
    run_all([job(tmp_path, name, FINISH) for name in "abc"], 2, told.append)
    assert told[-1] == 9


def test_a_failure_is_named_and_ends_the_others(tmp_path):
    failing = job(tmp_path, "bad", "print('so it ends'); raise SystemExit(2)")
    waiting = job(tmp_path, "slow", "import time; time.sleep(60)")
    began = time.monotonic()
    with pytest.raises(BenchError, match="bad ended with exit code 2: so it ends"):
        run_all([failing, waiting], 2, lambda done: None)
    assert time.monotonic() - began < 30


def test_an_end_without_a_summary_is_no_success(tmp_path):
    with pytest.raises(BenchError, match="ended without a summary"):
        run_all([job(tmp_path, "a", "pass")], 1, lambda done: None)
