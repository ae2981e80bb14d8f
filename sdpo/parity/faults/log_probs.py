"""Faults of the stage `log_probs`: shifts, temperature and precision before the support."""

import torch
from torch import Tensor

from sdpo.parity.faults.reference_parts import (
    FaultParts,
    LossParts,
    LossState,
    Pair,
    scaled_logits,
)
from sdpo.reference.loss import log_probs_from_logits


def _teacher_one_late(state: LossState) -> Pair:
    """Take the teacher's rows for those of the token before."""
    student, teacher = scaled_logits(state)
    return student, teacher.roll(1, dims=1)


def _both_one_late(state: LossState) -> Pair:
    """Take both sides' rows for those of the token before."""
    student, teacher = scaled_logits(state)
    return student.roll(1, dims=1), teacher.roll(1, dims=1)


def _labels_one_late(state: LossState) -> Pair:
    """Take the log-probs of the token before."""
    labels = state.responses.roll(1, dims=1)
    return (
        log_probs_from_logits(state.scaled_student, labels),
        log_probs_from_logits(state.scaled_teacher, labels),
    )


def _teacher_unscaled(state: LossState) -> Pair:
    """Divide the student's logits alone by the temperature."""
    return scaled_logits(state)[0], state.teacher_logits.detach()


def _student_unscaled(state: LossState) -> Pair:
    """Divide the teacher's logits alone by the temperature."""
    return state.student_logits, scaled_logits(state)[1]


def _both_unscaled(state: LossState) -> Pair:
    """Leave both sides' logits as they are."""
    return state.student_logits, state.teacher_logits.detach()


def _multiplied_by_temperature(state: LossState) -> Pair:
    """Multiply by the temperature instead of dividing."""
    temperature = state.config.temperature
    return state.student_logits * temperature, state.teacher_logits.detach() * temperature


def _in_precision(dtype: torch.dtype, *, teacher_only: bool = False) -> LossParts:
    """Take log-softmax in a lower precision, on both sides or one: sampled tokens and support."""

    def teachers(logits: Tensor) -> Tensor:
        return logits.to(dtype).log_softmax(-1).to(logits.dtype)

    def students(logits: Tensor) -> Tensor:
        return logits.log_softmax(-1) if teacher_only else teachers(logits)

    def sampled(state: LossState) -> Pair:
        at = state.responses.unsqueeze(-1)
        return (
            students(state.scaled_student).gather(-1, at).squeeze(-1),
            teachers(state.scaled_teacher).gather(-1, at).squeeze(-1),
        )

    def on_support(state: LossState) -> Pair:
        student, teacher = students(state.scaled_student), teachers(state.scaled_teacher)
        if not state.uses_topk:
            return student, teacher
        return (
            student.gather(-1, state.support_indices),
            teacher.gather(-1, state.support_indices),
        )

    return {"log_probs": sampled, "support": on_support}


FAULTS: FaultParts = {
    "M14": {"scaled_logits": _teacher_one_late},
    "M31": {"scaled_logits": _teacher_unscaled},
    "M32": _in_precision(torch.bfloat16),
    "M33": {"scaled_logits": _student_unscaled},
    "M34": {"scaled_logits": _both_unscaled},
    "M35": {"scaled_logits": _multiplied_by_temperature},
    "M36": _in_precision(torch.float16),
    "M37": {"scaled_logits": _both_one_late},
    "M38": {"log_probs": _labels_one_late},
    "M135": _in_precision(torch.float32, teacher_only=True),
}
