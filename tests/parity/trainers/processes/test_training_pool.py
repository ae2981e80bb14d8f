"""Trainings in processes of their own: whatever one does, the audit goes on and says what."""

import importlib.util
import os
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sdpo.parity.cases.checked_call import CandidateError, Location, NotCoveredError
from sdpo.parity.compare.statuses import Status
from sdpo.parity.trainers.adapters.sdpo_rl import SdpoRl
from sdpo.parity.trainers.adapters.sdpo_trainer import OwnTrainer
from sdpo.parity.trainers.adapters.trl import TRL
from sdpo.parity.trainers.judge.run_scenarios import differs_from_itself, run_trainer_family
from sdpo.parity.trainers.processes import liveness, training_server
from sdpo.parity.trainers.processes.ranks import compare_ranks, joined
from sdpo.parity.trainers.processes.training_pool import TrainingPool
from sdpo.parity.trainers.recording.adapter_base import TrainerAdapter
from sdpo.parity.trainers.recording.hf_trainer import TrainingFailedError
from sdpo.parity.trainers.scenarios import record_file
from sdpo.parity.trainers.scenarios.catalogue import PLAIN, SCENARIOS
from sdpo.parity.trainers.scenarios.training_record import (
    MicroBatch,
    OptimizerStep,
    TrainerRun,
    Update,
)

pytestmark = pytest.mark.usefixtures("packages_are_looked_up_once")

PEER = pytest.mark.skipif(
    importlib.util.find_spec("sdpo_rl") is None, reason="sdpo-rl is not installed"
)
TRAINERS = [OwnTrainer, TRL, pytest.param(SdpoRl, marks=PEER)]
TWO = replace(PLAIN, micro_batch_size=2, processes=2)


def a_run(rows=(0, 1, 2, 3), weight=1.0):
    micro = MicroBatch(list(rows), {"responses": torch.ones(4, 3, dtype=torch.int64)})
    weights = {"w": torch.full((2,), weight)}
    step = OptimizerStep([micro], weights, 0.5, weights, {"loss": float("nan")})
    prompt = {"feedback": [None, "x"], "demonstration": [(1, "text"), None]}
    return TrainerRun({"alpha": 0.5}, weights, weights, [Update(prompt, [step], weights)])


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path, monkeypatch):
    """Whatever ends a training, its folder goes."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert not list(folder.glob("sdpo-*"))


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def exits():
    sys.exit(7)


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def refuses():
    raise NotCoveredError("no such setting")


def complains():
    raise CandidateError("config", "it did not fire")


def breaks():
    raise RuntimeError("bad")


def odd():
    return TrainerRun(settings={"alpha": object()})


def hangs():
    time.sleep(600)


def one_fails():
    if rank():
        raise TrainingFailedError("accumulate", "this one failed")
    hangs()


class Fake(TrainerAdapter):
    name = "fake"

    def __init__(self, does):
        self.does = does

    def run(self, scenario, folder):
        self.location = Location("file.py", 3)
        self.locations = {"gradient": Location("other.py", 4)}
        return self.does()


def run(does, scenario=PLAIN, **options):
    adapter = Fake(does)
    with TrainingPool(adapter, [scenario], **options) as apart:
        return apart.run(scenario, Path()), adapter


def test_a_run_passes_from_process_to_process_as_it_was(tmp_path):
    found, adapter = run(a_run)
    expected = a_run()
    record_file.write(tmp_path / "expected", expected)
    record_file.write(tmp_path / "found", found)
    assert (tmp_path / "expected").read_bytes() == (tmp_path / "found").read_bytes()
    assert found.updates[0].steps[0].micro_batches[0].rows == [0, 1, 2, 3]
    assert adapter.location == Location("file.py", 3)
    assert adapter.locations == {"gradient": Location("other.py", 4)}


@pytest.mark.parametrize(
    ("does", "error", "message"),
    [
        (refuses, NotCoveredError, "no such setting"),
        (complains, CandidateError, "it did not fire"),
        (exits, CandidateError, "the adapter failed: SystemExit: 7"),
        (killed, CandidateError, r"ended its process \(signal 9\)"),
        (breaks, CandidateError, "the adapter failed: RuntimeError: bad"),
        (odd, CandidateError, "recorded value of type object"),
    ],
)
def test_a_training_that_fails_is_reported(does, error, message):
    with pytest.raises(error, match=message):
        run(does)


def test_a_training_that_hangs_is_ended():
    with pytest.raises(CandidateError, match=r"did not end within 1 s"):
        run(hangs, time_limit=1)


def test_processes_that_wait_for_each_other_are_ended_and_it_says_where(monkeypatch):
    monkeypatch.setattr(liveness, "IDLE_LIMIT", 1.0)
    with pytest.raises(TrainingFailedError, match=r"for ever: process 0 in hangs.*1 in hangs"):
        run(hangs, TWO)


def falls_once(how):
    path = Path(os.environ["SDPO_TEST_FOLDER"]) / "tried"
    if path.exists():
        return a_run()
    path.touch()
    return how()


@pytest.mark.parametrize("how", [hangs, killed])
def test_a_training_that_stands_still_or_falls_is_run_once_more(how, monkeypatch, tmp_path):
    if how is hangs:
        # long enough for a start on a machine that withdraws its processors for a while
        monkeypatch.setattr(liveness, "IDLE_LIMIT", 2.0)
    monkeypatch.setenv("SDPO_TEST_FOLDER", str(tmp_path))
    with TrainingPool(Fake(lambda: falls_once(how)), [PLAIN], twice=False) as apart:
        assert apart.run(PLAIN, Path()).updates
    (note,) = apart.notes
    assert "a second attempt" in note
    assert ("stood still" if how is hangs else "signal 9") in note


def test_a_hook_that_did_not_fire_has_its_place_and_reason_in_the_report():
    with TrainingPool(Fake(complains), [PLAIN]) as apart:
        (result,) = run_trainer_family(apart, lambda *_: None, [PLAIN]).results
    row = result.row()
    assert (row["status"], row["first_stage"]) == ("ERROR", "config")
    assert [comparison.note for comparison in result.comparisons] == ["it did not fire"]


def test_a_failure_outside_the_stages_cannot_be_raised():
    with pytest.raises(ValueError, match="stage='hook' of 'it did not fire': must be one of"):
        CandidateError("hook", "it did not fire")


def test_of_several_processes_the_one_that_failed_says_why(monkeypatch):
    monkeypatch.setattr(training_server, "GRACE", 0.2)
    with pytest.raises(TrainingFailedError, match="this one failed"):
        run(one_fails, TWO)


def by_seed():
    return a_run(weight=torch.rand(()).item())


def test_a_run_that_depends_on_the_global_seed_is_a_doubt():
    for does, doubts in ((a_run, 0), (by_seed, 1)):
        with TrainingPool(Fake(does), [PLAIN]) as apart:
            assert len(differs_from_itself(apart, PLAIN)) == doubts


# --- several processes as one ----------------------------------------------------------------


def of_rank():
    run = a_run(rows=(2 * rank(), 2 * rank() + 1), weight=1.0 + rank())
    run.updates[0].prompt = {
        "feedback": [f"{rank()}a", f"{rank()}b"],
        "distillation_mask": [rank() if row // 2 == rank() else None for row in range(4)],
    }
    return run


def test_processes_are_joined_and_what_they_hold_is_compared():
    (found, _) = run(of_rank, TWO, twice=False)
    (update,) = found.updates
    assert [m.rows for m in update.steps[0].micro_batches] == [[0, 1], [2, 3]]
    assert update.prompt["feedback"] == ["0a", "0b", "1a", "1b"]
    assert update.prompt["distillation_mask"] == [0, 0, 1, 1]
    stages = [(c.stage, c.status) for c in compare_ranks("case", found, 0)]
    expected = ("teacher_update", "accumulate", "optimizer")
    assert stages == [(stage, Status.DIVERGENT) for stage in expected]


def test_processes_that_hold_the_same_agree():
    found = joined(TWO, [a_run((0, 1)), a_run((2, 3))])
    assert list(compare_ranks("case", found, 0)) == []


# --- threads ---------------------------------------------------------------------------------


def counted(kind):
    class Counted(kind):
        def run(self, scenario, folder):
            found = super().run(scenario, folder)
            found.notes = [str(len(os.listdir("/proc/self/task")))]
            return found

    return Counted()


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are listed by Linux")
@pytest.mark.parametrize("kind", TRAINERS)
def test_a_training_has_no_other_thread(kind):
    """A thread of TRL's telemetry once looked up names while training changed the environment."""
    bfloat16 = next(scenario for scenario in SCENARIOS if scenario.id == "T29")
    with TrainingPool(counted(kind), [bfloat16], twice=False) as apart:
        assert apart.run(bfloat16, Path()).notes == ["1"]
