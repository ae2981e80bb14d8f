"""Faults of the stage `divergence`."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from sdpo.parity.faults.reference_parts import (
    FaultParts,
    LossPart,
    LossState,
    divergence,
    sampled_divergence,
)
from sdpo.reference import loss as reference

_CLIP_OF_TERMS = 0.05


def kl_terms(p: Tensor, q: Tensor) -> Tensor:
    """Compute the terms of `KL(p‖q)`."""
    return F.kl_div(q, p, reduction="none", log_target=True)


def terms(
    student: Tensor,
    teacher: Tensor,
    alpha: float,
    *,
    mixture: float | None = None,
    outer: float | None = None,
    normalized: bool = True,
) -> Tensor:
    """Compute the terms of the divergence, with other weights in the mixture form.

    Args:
        student: log-probs on the support.
        teacher: log-probs on the support.
        alpha: as the setting.
        mixture: weight of the teacher in the mixture; None for alpha.
        outer: weight of the teacher's divergence from the mixture; None for alpha.
        normalized: whether the mixture has its log-weights at all.
    """
    if alpha == 0.0:
        return kl_terms(teacher, student)
    if alpha == 1.0:
        return kl_terms(student, teacher)
    inner = torch.tensor(alpha if mixture is None else mixture, dtype=student.dtype)
    shifts = (torch.log(1 - inner), torch.log(inner)) if normalized else (0.0, 0.0)
    middle = torch.logsumexp(torch.stack([student + shifts[0], teacher + shifts[1]]), dim=0)
    weight = torch.tensor(alpha if outer is None else outer, dtype=student.dtype)
    return torch.lerp(kl_terms(student, middle), kl_terms(teacher, middle), weight)


def _terms_reduced_by(reduce: Callable[[Tensor], Tensor]) -> LossPart:
    """Reduce the terms of the divergence by something else than their sum."""
    return lambda state: reduce(
        terms(state.student_support, state.teacher_support, state.config.alpha)
    )


def at_alpha(change: Callable[[float], float]) -> LossPart:
    """Compute the divergence at another alpha."""
    return lambda state: reference.divergence(
        state.student_support, state.teacher_support, change(state.config.alpha)
    )


def _mixture_at_equal_weights(state: LossState) -> Tensor:
    """Mix both sides at a half each, whatever alpha is."""
    student, teacher = state.student_support, state.teacher_support
    return terms(student, teacher, state.config.alpha, mixture=0.5).sum(-1)


def _mixture_without_log_weights(state: LossState) -> Tensor:
    """Add the probabilities of both sides up, unweighted."""
    student, teacher = state.student_support, state.teacher_support
    return terms(student, teacher, state.config.alpha, normalized=False).sum(-1)


def _outer_weights_swapped(state: LossState) -> Tensor:
    """Mix as the reference does, but weigh the two divergences the other way round."""
    alpha = state.config.alpha
    return terms(state.student_support, state.teacher_support, alpha, outer=1 - alpha).sum(-1)


def _one_minus_alpha(state: LossState) -> Tensor:
    """Compute the divergence at 1 - alpha."""
    return terms(state.student_support, state.teacher_support, 1 - state.config.alpha).sum(-1)


def _rescaled_to_pure_forms(state: LossState) -> Tensor:
    """Divide the mixture form by alpha (1 - alpha), so that it tends to the pure forms."""
    alpha = state.config.alpha
    scale = 1.0 if alpha in (0.0, 1.0) else alpha * (1 - alpha)
    return divergence(state) / scale


def _cross_entropy(state: LossState) -> Tensor:
    """Compute KL(teacher‖student) without the teacher's entropy."""
    if state.config.alpha != 0.0:
        return divergence(state)
    # Entries of probability zero are left as the reference has them.
    return -(state.teacher_support.exp() * state.student_support).sum(-1)


def _without_tail_term(state: LossState) -> Tensor:
    """Sum the terms up to the tail."""
    if not (state.uses_topk and state.config.distillation_add_tail):
        return divergence(state)
    student, teacher = state.student_support[..., :-1], state.teacher_support[..., :-1]
    return reference.divergence(student, teacher, state.config.alpha)


def _in_bfloat16(state: LossState) -> Tensor:
    """Compute the divergence in bfloat16."""
    student, teacher = state.student_support.bfloat16(), state.teacher_support.bfloat16()
    low = reference.divergence(student, teacher, state.config.alpha)
    return low.to(state.student_support.dtype)


def _mixture_of_probabilities(floor: float) -> LossPart:
    """Mix probabilities instead of log-probs, and take the log of the mixture plus `floor`."""

    def compute(state: LossState) -> Tensor:
        alpha, student, teacher = (
            state.config.alpha,
            state.student_support,
            state.teacher_support,
        )
        if alpha in (0.0, 1.0):
            return divergence(state)
        p, q = student.exp(), teacher.exp()
        middle = ((1 - alpha) * p + alpha * q + floor).log()
        return ((1 - alpha) * p * (student - middle) + alpha * q * (teacher - middle)).sum(-1)

    return compute


def log_ratio(state: LossState) -> Tensor:
    """Compute log p - log q of the sampled token."""
    return state.student_log_probs - state.teacher_log_probs


def _low_variance_estimate(state: LossState) -> Tensor:
    """Compute exp(-d) - 1 + d of the log ratio d."""
    difference = log_ratio(state)
    return torch.exp(-difference) - 1 + difference


def _swap_ends(alpha: float) -> float:
    return 1.0 - alpha if alpha in (0.0, 1.0) else alpha


def _swap_between(alpha: float) -> float:
    return alpha if alpha in (0.0, 1.0) else 1.0 - alpha


def _times_sampled_token(state: LossState) -> Tensor:
    """Take the divergence for a reward of the sampled token."""
    return divergence(state).detach() * state.student_log_probs


FAULTS: FaultParts = {
    "M01": {"divergence": at_alpha(_swap_ends)},
    "M02": {"divergence": at_alpha(_swap_between)},
    "M03": {"divergence": _mixture_without_log_weights},
    "M20": {"divergence": _terms_reduced_by(lambda terms: terms.clamp(max=_CLIP_OF_TERMS).sum(-1))},
    "M55": {"divergence": _rescaled_to_pure_forms},
    "M56": {"divergence": _mixture_at_equal_weights},
    "M57": {"divergence": _outer_weights_swapped},
    "M58": {"divergence": _terms_reduced_by(lambda terms: terms.mean(-1))},
    "M59": {"divergence": lambda state: divergence(state) / math.log(2)},
    "M60": {"divergence": _cross_entropy},
    "M61": {"divergence": _without_tail_term},
    "M62": {"divergence": _terms_reduced_by(lambda terms: terms.abs().sum(-1))},
    "M63": {"divergence": at_alpha(lambda alpha: min(max(alpha, 1e-3), 1 - 1e-3))},
    "M64": {"divergence": at_alpha(lambda alpha: 0.0)},
    "M65": {"divergence": at_alpha(lambda alpha: 1.0)},
    "M66": {"divergence": at_alpha(lambda alpha: 0.5)},
    "M67": {"divergence": _in_bfloat16},
    "M68": {"sampled_divergence": lambda state: -sampled_divergence(state)},
    "M69": {"sampled_divergence": log_ratio},
    "M70": {"sampled_divergence": _low_variance_estimate},
    "M121": {"divergence": _mixture_of_probabilities(0.0)},
    "M122": {"divergence": _mixture_of_probabilities(1e-5)},
    "M123": {"divergence": _one_minus_alpha},
    "M148": {"divergence": _times_sampled_token},
    "M153": {"divergence": at_alpha(lambda alpha: min(max(alpha, 1e-6), 1 - 1e-6))},
    "M138": {"divergence": lambda state: divergence(state).clamp(max=10.0)},
}
