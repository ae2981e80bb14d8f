"""Faults of the stage `log_probs`: shifts, temperature and precision before the support."""

from collections.abc import Callable

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

_EPSILON = 1e-8


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


_LogSoftmax = Callable[[Tensor], Tensor]


def _plain(logits: Tensor) -> Tensor:
    """Take log-softmax as it is."""
    return logits.log_softmax(-1)


def _lower(dtype: torch.dtype) -> _LogSoftmax:
    """Take log-softmax in a lower precision."""
    return lambda logits: logits.to(dtype).log_softmax(-1).to(logits.dtype)


def _of(whole: Callable[[LossState], Pair]) -> LossParts:
    """Take log-probs of the sampled tokens, and on the support, of other whole distributions."""

    def sampled(state: LossState) -> Pair:
        at = state.responses.unsqueeze(-1)
        student, teacher = whole(state)
        return student.gather(-1, at).squeeze(-1), teacher.gather(-1, at).squeeze(-1)

    def on_support(state: LossState) -> Pair:
        student, teacher = whole(state)
        if not state.uses_topk:
            return student, teacher
        return (
            student.gather(-1, state.support_indices),
            teacher.gather(-1, state.support_indices),
        )

    return {"log_probs": sampled, "support": on_support}


def _by(students: _LogSoftmax, teachers: _LogSoftmax) -> LossParts:
    """Take log-probs of each side by another function."""
    return _of(lambda state: (students(state.scaled_student), teachers(state.scaled_teacher)))


def _both(log_softmax: _LogSoftmax) -> LossParts:
    """Take log-probs of both sides by another function."""
    return _by(log_softmax, log_softmax)


def _floored_at(least: float) -> _LogSoftmax:
    """Keep log-probs from falling below a floor."""
    return lambda logits: logits.log_softmax(-1).clamp(min=least)


def _rounded_first(logits: Tensor) -> Tensor:
    """Round logits to bfloat16 before log-softmax in their own precision."""
    return logits.bfloat16().to(logits.dtype).log_softmax(-1)


def _with_epsilon(logits: Tensor) -> Tensor:
    """Add an epsilon to the probabilities before their logarithm."""
    return (logits.softmax(-1) + _EPSILON).log()


def _tempered_afterwards(state: LossState) -> Pair:
    """Divide log-probs by the temperature, where the reference divides logits."""
    student, teacher = _both_unscaled(state)
    temperature = state.config.temperature
    return student.log_softmax(-1) / temperature, teacher.log_softmax(-1) / temperature


FAULTS: FaultParts = {
    "M14": {"scaled_logits": _teacher_one_late},
    "M31": {"scaled_logits": _teacher_unscaled},
    "M32": _both(_lower(torch.bfloat16)),
    "M33": {"scaled_logits": _student_unscaled},
    "M34": {"scaled_logits": _both_unscaled},
    "M35": {"scaled_logits": _multiplied_by_temperature},
    "M36": _both(_lower(torch.float16)),
    "M37": {"scaled_logits": _both_one_late},
    "M38": {"log_probs": _labels_one_late},
    "M135": _by(_plain, _lower(torch.float32)),
    "M139": _of(_tempered_afterwards),
    "M140": _by(_lower(torch.bfloat16), _plain),
    "M141": _by(_plain, _lower(torch.bfloat16)),
    "M142": _both(_rounded_first),
    "M143": _both(_floored_at(-10.0)),
    "M144": _both(_floored_at(-20.0)),
    "M145": _both(_with_epsilon),
}
