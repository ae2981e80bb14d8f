"""Faults of the stage `gradient`: the loss is right, what is differentiated is not."""

import torch
from torch import Tensor

from sdpo.parity.faults.divergence import kl_terms
from sdpo.parity.faults.importance import LARGEST_LOG_RATIO, cap, log_ratio
from sdpo.parity.faults.reference_parts import (
    FaultParts,
    LossPart,
    LossState,
    Pair,
    divergence,
    importance_ratio,
    scaled_logits,
    support,
)
from sdpo.parity.faults.tail import each_side_by, tail_with_limit, with_tail_entry
from sdpo.reference import loss as reference
from sdpo.reference.loss import add_tail, renormalize


def _ratio_not_detached(state: LossState) -> Tensor:
    """Let the gradient pass through the ratio."""
    ratio = importance_ratio(state)
    change = state.student_log_probs - state.student_log_probs.detach()
    unlimited = (ratio < cap(state)) & (log_ratio(state).abs() < LARGEST_LOG_RATIO)
    return ratio * (1 + torch.where(unlimited & change.isfinite(), change, 0.0))


def _teacher_not_detached(state: LossState) -> Pair:
    """Let the gradient pass into the teacher's logits."""
    return scaled_logits(state)[0], state.teacher_logits / state.config.temperature


def _surrogate_with_teacher(state: LossState) -> Tensor:
    """Let the gradient of the surrogate reach the teacher."""
    student = state.student_log_probs
    return (student.detach() - state.teacher_log_probs) * student


def _surrogate_other_factor_detached(state: LossState) -> Tensor:
    """Detach the student's log-probs in the surrogate instead of the difference."""
    student = state.student_log_probs
    return (student - state.teacher_log_probs) * student.detach()


def _gradient_by_sampled_token(state: LossState) -> Tensor:
    """Hold the divergence, and differentiate it as a reward of the sampled token."""
    log_probs = state.student_log_probs
    return divergence(state).detach() * (1 + log_probs - log_probs.detach())


def _surrogate_not_detached(state: LossState) -> Tensor:
    """Detach nothing in the surrogate."""
    return (state.student_log_probs - state.teacher_log_probs) * state.student_log_probs


def _normaliser_detached(state: LossState) -> Pair:
    """Let the gradient reach the chosen logits, and not their normaliser."""
    student, teacher = support(state)
    logits = state.scaled_student
    chosen = logits.gather(-1, state.support_indices) if state.uses_topk else logits
    return _with_gradient_of(student, chosen), teacher


def _rounded_to_bfloat16(state: LossState) -> Pair:
    """Round the gradient of the student's support to bfloat16."""
    student, teacher = support(state)
    if student.requires_grad:
        student.register_hook(lambda gradient: gradient.bfloat16().to(gradient.dtype))
    return student, teacher


def _tail_detached(log_probs: Tensor) -> Tensor:
    """Add the tail without gradient."""
    return with_tail_entry(log_probs, add_tail(log_probs)[..., -1:].detach())


def _probabilities_detached(state: LossState) -> Tensor:
    """Take the student's probabilities in the divergence for constants."""
    student, teacher, alpha = state.student_support, state.teacher_support, state.config.alpha
    exact = divergence(state)
    if alpha == 0.0:
        return _with_gradient_of(exact, reference.divergence(student, teacher, alpha))
    if alpha == 1.0:
        return _with_gradient_of(exact, (student.detach().exp() * (student - teacher)).sum(-1))
    weight = torch.tensor(alpha, dtype=student.dtype)
    weighted = torch.stack([student + torch.log(1 - weight), teacher + torch.log(weight)])
    middle = torch.logsumexp(weighted, dim=0)
    students = student.detach().exp() * (student - middle)
    detached = torch.lerp(students, kl_terms(teacher, middle), weight).sum(-1)
    return _with_gradient_of(exact, detached)


def zero_gradient(state: LossState) -> Tensor:
    """Return the loss with a zero gradient, also where it is not finite."""
    leaf = state.student_log_probs if state.from_log_probs else state.student_logits
    nothing = leaf.masked_fill(torch.ones_like(leaf, dtype=torch.bool), 0.0).sum()
    return state.loss.detach() + nothing.to(state.loss.dtype)


def _gradient_times(factor: float) -> LossPart:
    """Return the loss with its gradient times a factor."""
    return lambda state: _with_gradient_times(state, factor)


def _with_gradient_times(state: LossState, factor: float) -> Tensor:
    """Scale the gradient of the loss; a loss that is not finite is left as it is."""
    changed = state.loss.detach() + factor * (state.loss - state.loss.detach())
    return torch.where(state.loss.isfinite(), changed, state.loss)


def _temperature_missing(state: LossState) -> Tensor:
    """Return the gradient with respect to logits ÷ temperature."""
    return _with_gradient_times(state, state.config.temperature)


def _leaking_into_padding(state: LossState) -> Tensor:
    """Give places that do not count a gradient, without an effect on the value."""
    outside = (state.loss_mask == 0) & state.student_log_probs.isfinite()
    moved = torch.where(outside, state.student_log_probs, 0.0)
    return state.loss + 1e-3 * (moved - moved.detach()).sum().to(state.loss.dtype)


def _with_gradient_of(value: Tensor, other: Tensor) -> Tensor:
    """Return a value with the gradient of another, none where that is not finite."""
    return value.detach() + torch.where(other.isfinite(), other - other.detach(), 0.0)


FAULTS: FaultParts = {
    "M17": {"importance_ratio": _ratio_not_detached},
    "M21": {"scaled_logits": _teacher_not_detached},
    "M21b": {"scaled_logits": _teacher_not_detached, "sampled_divergence": _surrogate_with_teacher},
    "M22": {"sampled_divergence": _surrogate_other_factor_detached},
    "M23": {"returned_loss": zero_gradient},
    "M93": {"returned_loss": _gradient_times(-1.0)},
    "M94": {"returned_loss": _gradient_times(4.0)},
    "M95": {"returned_loss": lambda state: state.loss.detach()},
    "M96": {"returned_loss": _temperature_missing},
    "M97": {"returned_loss": _leaking_into_padding},
    "M98": {"support": _rounded_to_bfloat16},
    "M99": {"tail": each_side_by(_tail_detached, renormalize)},
    "M100": {"tail": each_side_by(tail_with_limit(1e-7, gradient_passes=True), renormalize)},
    "M101": {"support": _normaliser_detached},
    "M102": {"sampled_divergence": _surrogate_not_detached},
    "M103": {"divergence": _probabilities_detached},
    "M133": {"returned_loss": _gradient_times(2)},
    "M134": {"returned_loss": _gradient_times(0.5)},
    "M149": {"divergence": _gradient_by_sampled_token},
}
