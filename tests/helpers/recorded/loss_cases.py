"""Recorded loss cases, their stage values by either side, and how they compare."""

import functools

import torch

from sdpo.fixtures import packaged_family
from sdpo.parity.candidates.implementations import Own
from sdpo.parity.cases.loss_case import LOSS_SETTINGS, LossCase, loss_case
from sdpo.parity.compare.evaluated_case import evaluate_case
from sdpo.parity.compare.loss_stages import compare_loss
from sdpo.reference.loss import loss_from_logits

FAMILY = packaged_family("loss")
IDS = [golden.id for golden in FAMILY]


@functools.cache
def recorded(case_id: str) -> dict[str, torch.Tensor]:
    """All tensors of a case as recorded."""
    return FAMILY.case(case_id).tensors()


@functools.cache
def case(case_id: str) -> LossCase:
    """The inputs of a case."""
    return loss_case(FAMILY.case(case_id))


def transcription(case_id: str) -> dict[str, torch.Tensor]:
    """Stage values of the transcription under the recording's names, from the inputs alone."""
    inputs = case(case_id)
    leaf = inputs.student_logits.clone().requires_grad_(True)
    trace: dict[str, torch.Tensor] = {}
    loss = loss_from_logits(
        leaf,
        inputs.teacher_logits,
        inputs.responses,
        inputs.response_mask,
        old_log_probs=inputs.old_log_probs,
        self_distillation_mask=inputs.self_distillation_mask,
        rollout_is_weights=inputs.rollout_is_weights,
        trace=trace,
        **{name: getattr(inputs.config, name) for name in LOSS_SETTINGS},
    )
    (trace["grad_student_logits"],) = torch.autograd.grad(loss, leaf)
    return {f"out.{name}": value.detach() for name, value in trace.items()}


def comparisons(case_id: str, trace=None):
    """Comparisons of a trace, of ours if none is given, with the reference on a recorded case."""
    evaluated = evaluate_case(case(case_id))
    trace = Own().trace(evaluated.case) if trace is None else trace
    return compare_loss(evaluated, trace)
