"""What a run writes: steps apart from the clock, one evaluation a step, the teacher's lead."""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sdpo.benchmark.runs.records import Records
from sdpo.benchmark.runs.run_recorder import Recorder, TeacherLead
from sdpo.benchmark.runs.settings import RecordSettings, load

SUMMARY = {"pass_at_1": 0.5, "low": 0.1, "high": 0.9, "problems": 2, "samples": 1, "passes": {}}
NOTHING: Any = None
STATE: Any = SimpleNamespace(is_world_process_zero=True, global_step=3, max_steps=4)


@pytest.fixture
def records(tmp_path):
    return Records(tmp_path)


def recorder(records: Records, told: list[Any]) -> Recorder:
    def evaluation() -> Any:
        told.append("evaluated")
        return SUMMARY, []

    settings = load("sdpo", ["eval.every=2"])
    return Recorder(records, settings, evaluation, records.steps.path.parent, told.append)


def test_a_step_is_evaluated_once(records):
    told: list[Any] = []
    for _ in range(2):
        recorder(records, told).measure(2)
    assert told == ["evaluated"]
    assert [(row["step"], row["pass_at_1"]) for row in records.evals.read()] == [(2, 0.5)]


@pytest.mark.parametrize(("step", "due"), [(1, False), (2, True), (3, False), (7, True)])
def test_evaluations_are_due_at_multiples_and_at_the_end(records, step, due):
    told: list[Any] = []
    state: Any = SimpleNamespace(is_world_process_zero=True, global_step=step, max_steps=7)
    recorder(records, told).on_step_end(NOTHING, state, NOTHING)
    assert told == ["evaluated"] * due


def test_the_clock_and_the_audit_are_kept_apart(records):
    told: list[Any] = []
    logs = {"loss": 0.5, "step_time": 2.0, "parity/first_moved": 0, "reward": 0.25}
    recorder(records, told).on_log(NOTHING, STATE, NOTHING, logs)
    assert records.steps.read() == [{"step": 3, "loss": 0.5, "reward": 0.25}]
    assert records.parity.read() == [{"step": 3, "parity/first_moved": 0}]
    (cost,) = records.cost.read()
    assert (cost["step"], cost["step_time"]) == (3, 2.0)
    assert told == [{"loss": 0.5, "reward": 0.25}]


def test_a_full_disk_stops_the_run(records, monkeypatch):
    import shutil

    full = shutil._ntuple_diskusage(10, 10, 0)  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    (records.steps.path.parent / "checkpoint-3").mkdir()
    with pytest.raises(OSError, match="only 0 MiB are free for checkpoints"):
        recorder(records, []).on_save(NOTHING, STATE, NOTHING)


def test_the_lead_is_averaged_apart_for_passed_and_failed(records):
    """Rows lead by 1 + 2 and by −4; the third has no teacher. Divergence: (3 · 1 + 2) / 4."""
    metrics: Any = {"train": defaultdict(list)}
    config = SimpleNamespace(success_reward_threshold=1.0)
    trainer: Any = SimpleNamespace(_metrics=metrics, sdpo_config=config)
    lead = TeacherLead(trainer, NOTHING, records.samples, RecordSettings())
    lead.rewards = [1.0, 0.0, 0.0]
    mask = torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]])
    batch: Any = {"response_mask": mask, "self_distillation_mask": torch.tensor([1.0, 1.0, 0.0])}
    values = {
        "log_probs.student": torch.zeros(3, 2),
        "log_probs.teacher": torch.tensor([[1.0, 2.0], [-4.0, 0.0], [9.0, 9.0]]),
        "divergence": torch.tensor([[1.0, 1.0], [1.0, 2.0], [9.0, 9.0]]),
    }
    lead.on_micro_batch_end(batch, values, 1.0)
    assert dict(metrics["train"]) == {
        "teacher/ahead_on_passed": [3.0],
        "teacher/ahead_on_failed": [-4.0],
        "teacher/divergence_per_token": [1.25],
    }


def test_a_checkpoint_remembers_where_in_the_generation_it_was(records):
    first, second = (
        TeacherLead(NOTHING, NOTHING, records.samples, RecordSettings()) for _ in range(2)
    )
    first.rewards, first.row = [0.0, 1.0], 1
    second.resume(first.counters(), {})
    assert (second.rewards, second.row) == ([0.0, 1.0], 1)
