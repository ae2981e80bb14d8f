"""The recorded updates through the trainer's real path: `train()` with recorded rollouts.

Budget kind: the largest change that the golden data's README reports for another instruction set;
bitwise against the plain function with the same calls of the models, on any processor.

Not expressible with TRL's settings: mini-batches that micro-batches do not divide (P-U018,
P-U019), groups by token count (P-U043), no teacher weights at all (P-U038), holes in packed rows
(P-U045, P-U046), log-probs in bfloat16 (P-U047).
"""

import pytest

import sdpo.trainer.sdpo_trainer
from sdpo.parity.cases.stage_trace import GRAD_NORM, SCALED_LOSS
from sdpo.parity.recorded.golden_updates import golden_tensors
from sdpo.trainer import micro_batch_loss
from tests.helpers.recorded import golden_trainer
from tests.helpers.recorded.golden_trainer import cases
from tests.helpers.recorded.update_canaries import (
    at_signal,
    of_each_update,
    reference_stages,
    run_with_reference_loss,
)

pytestmark = pytest.mark.usefixtures("packages_are_looked_up_once")

NOT_IN_TRL = {"P-U018", "P-U019", "P-U038", "P-U043", "P-U045", "P-U046", "P-U047"}
CASES = [case.id for case in cases.family() if case.id not in NOT_IN_TRL]
NOT_RECORDED = ("old_log_probs_used", "entropy")
DIFFERENT = {"P-U026": (*NOT_RECORDED, "mb1.loss")}


@pytest.mark.parametrize("case_id", CASES)
def test_the_trainer_reproduces_the_recorded_update(case_id, tmp_path):
    run = golden_trainer.run(case_id, tmp_path)
    skip = DIFFERENT.get(case_id, NOT_RECORDED)
    found = cases.tensor_differences(case_id, run, exact=False, counted_only=True, skip=skip)
    assert found == []
    # an entropy bonus changes the logged loss of the reference, in place
    losses = [] if case_id in ("P-U026", "P-U040") else ["actor/pg_loss"]
    names = ["actor/grad_norm", *losses]
    assert cases.metric_differences(case_id, run, exact=False, names=names) == []


@pytest.mark.parametrize("case_id", CASES)
def test_with_the_reference_loss_the_path_is_bit_equal(case_id, tmp_path, monkeypatch):
    """Accumulation, clipping, skipping, optimizer and teacher add no rounding of their own."""
    monkeypatch.setattr(micro_batch_loss, "self_distillation_stages", reference_stages)
    run = golden_trainer.run(case_id, tmp_path)
    expected = run_with_reference_loss(case_id, teacher_logits=at_signal)
    assert other_bits(case_id, run, golden_tensors(expected)) == []
    numbers = (of_each_update(expected, name) for name in (SCALED_LOSS, GRAD_NORM))
    for metrics, losses, norms in zip(run.metrics, *numbers, strict=True):
        assert metrics["actor/grad_norm"] == pytest.approx(norms, rel=0, abs=0, nan_ok=True)
        assert metrics["actor/pg_loss"] == pytest.approx(sum(losses), rel=0, abs=0, nan_ok=True)


def other_bits(case_id, run, expected):
    """Recorded names whose value in the run is not the expected one to the bit."""
    names = [name for name in cases.outputs(case_id) if not name.endswith(NOT_RECORDED)]
    return [name for name in names if not cases.same(run.tensors[name], expected[name])]


def test_a_rounding_of_its_own_is_seen_in_the_path(tmp_path, monkeypatch):
    """A scale that is multiplied in and divided out again, which no budget would find."""
    monkeypatch.setattr(micro_batch_loss, "self_distillation_stages", reference_stages)
    expected = golden_tensors(run_with_reference_loss("P-U002", teacher_logits=at_signal))
    real = golden_trainer.Recorded._scale
    kind = type(
        "Faulty", (golden_trainer.Recorded,), {"_scale": lambda *a: real(*a) * (1 - 2**-23)}
    )
    run = golden_trainer.run("P-U002", tmp_path, kind)
    assert other_bits("P-U002", run, expected)
    assert cases.tensor_differences("P-U002", run, exact=False, skip=NOT_RECORDED) == []


FAULTS = {
    "not divided by accumulation steps": (
        "P-U002",
        "_scale",
        lambda self, inputs: 1.0,
        "accumulate",
    ),
    "EMA after every optimizer step": (
        "P-U015",
        "after_optimizer_step",
        lambda self: self.teacher.update(self.model, stepped=True),
        # The next mini-batch already meets another teacher.
        "log_probs",
    ),
    "a step that is not finite is taken": (
        "P-U027",
        "_get_grad_norm",
        lambda self, model, grad_norm=None: self._stepped.append(True) or grad_norm,
        "optimizer",
    ),
    "rows shuffled": (
        "P-U002",
        "_prepare_inputs",
        sdpo.trainer.sdpo_trainer.GRPOTrainer._prepare_inputs,
        None,
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_path_is_found(fault, tmp_path):
    case_id, name, wrong, stage = FAULTS[fault]
    kind = type("Faulty", (golden_trainer.Recorded,), {name: wrong})
    run = golden_trainer.run(case_id, tmp_path, kind)
    found = cases.tensor_differences(
        case_id, run, exact=False, counted_only=True, skip=NOT_RECORDED
    )
    assert found
    if stage is not None:
        assert cases.first_stage(case_id, found) == stage
