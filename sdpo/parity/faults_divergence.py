"""Faults of the stages `divergence` and `importance`."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from sdpo.parity.faults_parts import (
    Fault,
    Part,
    Run,
    divergence,
    ratio,
    sampled_divergence,
    weights,
)
from sdpo.reference import loss as reference
from sdpo.reference.loss import log_probs_from_logits

CLIP_OF_TERMS = 0.05
LARGEST_LOG_RATIO = 20.0


def kl(p: Tensor, q: Tensor) -> Tensor:
    """The terms of `KL(p‖q)`."""
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
    """The terms of the divergence, with other weights inside or outside the mixture form."""
    if alpha == 0.0:
        return kl(teacher, student)
    if alpha == 1.0:
        return kl(student, teacher)
    inner = torch.tensor(alpha if mixture is None else mixture, dtype=student.dtype)
    shifts = (torch.log(1 - inner), torch.log(inner)) if normalized else (0.0, 0.0)
    mixed = torch.logsumexp(torch.stack([student + shifts[0], teacher + shifts[1]]), dim=0)
    weight = torch.tensor(alpha if outer is None else outer, dtype=student.dtype)
    return torch.lerp(kl(student, mixed), kl(teacher, mixed), weight)


def over(change: Callable[[Tensor], Tensor], sampled: bool = False) -> Part:
    """The divergence with its terms changed before the sum, or as it is in sampled mode."""

    def changed(run: Run) -> Tensor:
        if sampled:
            return change(sampled_divergence(run).unsqueeze(-1))
        return change(terms(run.student_on, run.teacher_on, run.config.alpha))

    return changed


def with_alpha(change: Callable[[float], float]) -> Part:
    """The divergence at another alpha."""
    return lambda run: reference.divergence(
        run.student_on, run.teacher_on, change(run.config.alpha)
    )


def weighted(**options: Callable[[float], float]) -> Part:
    """The mixture form with other weights inside or outside."""

    def changed(run: Run) -> Tensor:
        alpha = run.config.alpha
        chosen = {name: value(alpha) for name, value in options.items()}
        return terms(run.student_on, run.teacher_on, alpha, **chosen).sum(-1)

    return changed


def rescaled(run: Run) -> Tensor:
    """The mixture form divided by alpha (1 - alpha), so that it tends to the pure forms."""
    alpha = run.config.alpha
    scale = 1.0 if alpha in (0.0, 1.0) else alpha * (1 - alpha)
    return divergence(run) / scale


def cross_entropy(run: Run) -> Tensor:
    """KL(teacher‖student) without the teacher's entropy."""
    if run.config.alpha != 0.0:
        return divergence(run)
    # Entries of probability zero are left as the reference has them.
    return -(run.teacher_on.exp() * run.student_on).sum(-1)


def without_tail(run: Run) -> Tensor:
    """The sum stops before the tail."""
    if not (run.topk and run.config.distillation_add_tail):
        return divergence(run)
    student, teacher = run.student_on[..., :-1], run.teacher_on[..., :-1]
    return reference.divergence(student, teacher, run.config.alpha)


def in_bfloat16(run: Run) -> Tensor:
    """The divergence computed in bfloat16."""
    student, teacher = run.student_on.bfloat16(), run.teacher_on.bfloat16()
    return reference.divergence(student, teacher, run.config.alpha).to(run.student_on.dtype)


def low_variance_estimate(run: Run) -> Tensor:
    """exp(-d) - 1 + d of the log ratio d."""
    gap = run.student_log_probs - run.teacher_log_probs
    return torch.exp(-gap) - 1 + gap


def log_ratio(run: Run) -> Tensor:
    """The log ratio without gradient.

    Raises:
        ValueError: old log-probs are missing.
    """
    if run.old_log_probs is None:
        raise ValueError("is_clip needs old_log_probs")
    return (run.student_log_probs - run.old_log_probs).detach()


def clamped(log_values: Tensor) -> Tensor:
    """Log ratios within ±20."""
    return log_values.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)


def cap(run: Run) -> float:
    """The upper limit of the ratio; infinity if there is none."""
    return math.inf if run.config.is_clip is None else run.config.is_clip


def ratio_with_gradient(run: Run) -> Tensor:
    """The ratio, not detached."""
    gap = run.student_log_probs - (log_ratio(run) * 0 + (run.old_log_probs or 0))  # pragma: no cover
    return clamped(gap).exp().clamp(max=cap(run))


def of_other_temperature(run: Run) -> Tensor:
    """The present log-probs at temperature 1, the old ones at the setting's."""
    present = log_probs_from_logits(run.student_logits, run.responses)
    return ratio(replaced(run, student_log_probs=present))


def replaced(run: Run, **values: Tensor) -> Run:
    """A copy of the run with other values."""
    copy = replace(run)
    copy.__dict__.update({**run.__dict__, **values})
    return copy


def of_the_row(run: Run) -> Tensor:
    """One ratio for each row: the mean log ratio of its tokens."""
    mean = (log_ratio(run) * run.mask).sum(-1, keepdim=True)
    mean = mean / run.mask.sum(-1, keepdim=True).clamp(min=1)
    return clamped(mean).exp().clamp(max=cap(run)).expand_as(run.mask)


def self_normalized(run: Run) -> Tensor:
    """The ratio divided by its mean over the tokens that count."""
    own = ratio(run)
    counts = run.mask != 0
    mean = torch.where(counts, own, 0.0).sum() / counts.sum().clamp(min=1)
    return own / mean


def capped_product(run: Run) -> Tensor:
    """The product of ratio and weights is capped, not the ratio."""
    product = clamped(log_ratio(run)).exp()
    if run.rollout_is_weights is not None:
        product = product * run.rollout_is_weights
    return product.clamp(max=cap(run))


def ratio_of(change: Callable[[Run, Tensor], Tensor]) -> Part:
    """A ratio made from the run and the log ratio."""
    return lambda run: change(run, log_ratio(run))
