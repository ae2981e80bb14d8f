"""Faults of the stages `divergence` and `importance`."""

import math
from collections.abc import Callable
from copy import copy
from typing import Any

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
    middle = torch.logsumexp(torch.stack([student + shifts[0], teacher + shifts[1]]), dim=0)
    weight = torch.tensor(alpha if outer is None else outer, dtype=student.dtype)
    return torch.lerp(kl(student, middle), kl(teacher, middle), weight)


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


def mixed(**options: Any) -> Part:
    """The mixture form with other weights inside or outside."""
    return lambda run: terms(run.student_on, run.teacher_on, run.config.alpha, **options).sum(-1)


def outer_swapped(run: Run) -> Tensor:
    """The mixture as it is, its two divergences weighted the other way round."""
    alpha = run.config.alpha
    return terms(run.student_on, run.teacher_on, alpha, outer=1 - alpha).sum(-1)


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
    own = ratio(run)
    gap = run.student_log_probs - run.student_log_probs.detach()
    free = (own < cap(run)) & (log_ratio(run).abs() < LARGEST_LOG_RATIO) & gap.isfinite()
    return own * (1 + torch.where(free, gap, 0.0))


def of_other_temperature(run: Run) -> Tensor:
    """The present log-probs at temperature 1, the old ones at the setting's."""
    present = log_probs_from_logits(run.student_logits, run.responses)
    return ratio(replaced(run, student_log_probs=present))


def replaced(run: Run, **values: Tensor) -> Run:
    """A copy of the run with other values."""
    other = copy(run)
    other.__dict__.update(values)
    return other


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


def weights_held(student: Tensor, teacher: Tensor, alpha: float) -> Tensor:
    """The divergence whose outer probabilities carry no gradient."""
    if alpha == 0.0:
        return reference.divergence(student, teacher, alpha)
    if alpha == 1.0:
        return (student.detach().exp() * (student - teacher)).sum(-1)
    weight = torch.tensor(alpha, dtype=student.dtype)
    shifted = torch.stack([student + torch.log(1 - weight), teacher + torch.log(weight)])
    middle = torch.logsumexp(shifted, dim=0)
    own = student.detach().exp() * (student - middle)
    return torch.lerp(own, kl(teacher, middle), weight).sum(-1)


def straight_through(value: Tensor, gradient: Tensor) -> Tensor:
    """The value of one tensor with the gradient of another."""
    return value.detach() + torch.where(gradient.isfinite(), gradient - gradient.detach(), 0.0)


def squared_weights(run: Run) -> Tensor | None:
    """The rollout weights squared."""
    return None if run.rollout_is_weights is None else run.rollout_is_weights.square()


def divergence_fault(
    number: int, name: str, part: Part, *, source: str = "design", inactive: str = ""
) -> Fault:
    """A fault of distribution-comparing modes."""
    return Fault(
        f"M{number:02}",
        name,
        "divergence",
        "divergence",
        source,
        {"divergence": part},
        inactive=inactive,
    )


def sampled_fault(number: int, name: str, part: Part) -> Fault:
    """A fault of sampled-token mode."""
    return Fault(
        f"M{number:02}", name, "divergence", "divergence", "design", {"sampled_divergence": part}
    )


def ratio_fault(
    id_: str, name: str, part: Part, *, source: str = "design", inactive: str = ""
) -> Fault:
    """A fault of the importance ratio."""
    return Fault(
        id_,
        name,
        "importance sampling",
        "importance",
        source,
        {"ratio": part},
        inactive=inactive,
    )


DIVERGENCE = (
    divergence_fault(
        1,
        "KL direction swapped at alpha 0 and 1",
        with_alpha(lambda alpha: 1.0 - alpha if alpha in (0.0, 1.0) else alpha),
        source="idanshen #5, OPSD #14, TRL #4935",
    ),
    divergence_fault(
        2,
        "weights of the mixture form swapped",
        with_alpha(lambda alpha: alpha if alpha in (0.0, 1.0) else 1.0 - alpha),
        source="TRL #6780",
        inactive="equal at alpha 0.5",
    ),
    divergence_fault(
        3,
        "mixture without its log-weights",
        mixed(normalized=False),
    ),
    divergence_fault(
        20,
        f"terms clipped at {CLIP_OF_TERMS} before the sum",
        over(lambda found: found.clamp(max=CLIP_OF_TERMS).sum(-1)),
        source="TRL #5990",
    ),
    divergence_fault(55, "mixture form rescaled to the pure forms", rescaled),
    divergence_fault(
        56,
        "mixture at equal weights",
        mixed(mixture=0.5),
        inactive="equal at alpha 0.5",
    ),
    divergence_fault(
        57,
        "outer weights of the mixture form swapped",
        outer_swapped,
        inactive="equal at alpha 0.5",
    ),
    divergence_fault(58, "mean over the support", over(lambda found: found.mean(-1))),
    divergence_fault(59, "log base 2", lambda run: divergence(run) / math.log(2)),
    divergence_fault(60, "cross-entropy for KL(teacher‖student)", cross_entropy),
    divergence_fault(61, "tail left out of the sum", without_tail),
    divergence_fault(62, "absolute values of the terms", over(lambda found: found.abs().sum(-1))),
    divergence_fault(
        63,
        "mixture form at alpha 0 and 1 too",
        with_alpha(lambda alpha: min(max(alpha, 1e-3), 1 - 1e-3)),
    ),
    divergence_fault(64, "KL(teacher‖student) at any alpha", with_alpha(lambda alpha: 0.0)),
    divergence_fault(65, "KL(student‖teacher) at any alpha", with_alpha(lambda alpha: 1.0)),
    divergence_fault(66, "alpha 0.5 at any alpha", with_alpha(lambda alpha: 0.5)),
    divergence_fault(
        67,
        "divergence in bfloat16",
        in_bfloat16,
        inactive="in bfloat16 the reference rounds just as much",
    ),
    sampled_fault(
        68, "sampled token: sign reversed", over(lambda found: -found[..., 0], sampled=True)
    ),
    sampled_fault(
        69,
        "sampled token: plain log ratio",
        lambda run: run.student_log_probs - run.teacher_log_probs,
    ),
    sampled_fault(70, "sampled token: low-variance estimate", low_variance_estimate),
)

IMPORTANCE = (
    ratio_fault(
        "M17b",
        "log ratio not kept within ±20",
        ratio_of(lambda run, gap: gap.exp().clamp(max=cap(run))),
        source="TRL #4935",
        inactive="shows only where the log ratio is beyond 20",
    ),
    ratio_fault(
        "M17c",
        "ratio clipped from below",
        ratio_of(lambda run, gap: clamped(gap).exp().clamp(min=cap(run))),
        source="TRL #4935",
    ),
    ratio_fault(
        "M18",
        "ratio applied twice",
        lambda run: ratio(run).square(),
        source="lasgroup/SDPO applies ratio and weights",
    ),
    Fault(
        "M19",
        "ratio across temperatures",
        "importance sampling",
        "importance",
        "design",
        {"ratio": of_other_temperature},
        needs_logits=True,
    ),
    ratio_fault(
        "M71",
        "ratio upside down",
        ratio_of(lambda run, gap: clamped(-gap).exp().clamp(max=cap(run))),
    ),
    ratio_fault(
        "M72",
        "ratio of the teacher to the old policy",
        lambda run: ratio(replaced(run, student_log_probs=run.teacher_log_probs)),
    ),
    ratio_fault("M73", "ratio left out", lambda run: torch.ones_like(run.student_log_probs)),
    ratio_fault("M76", "ratio not capped", ratio_of(lambda run, gap: clamped(gap).exp())),
    ratio_fault(
        "M77",
        "cap applied to the log ratio",
        ratio_of(lambda run, gap: clamped(gap).clamp(max=cap(run)).exp()),
    ),
    ratio_fault("M78", "one ratio for each row", of_the_row),
    ratio_fault("M79", "ratio divided by its mean", self_normalized),
    ratio_fault(
        "M80",
        "ratio capped on both sides",
        ratio_of(lambda run, gap: clamped(gap).exp().clamp(1 / cap(run), cap(run))),
    ),
    Fault(
        "M74",
        "rollout weights left out",
        "importance sampling",
        "importance",
        "design",
        {"weights": lambda run: None},
    ),
    Fault(
        "M75",
        "rollout weights squared",
        "importance sampling",
        "importance",
        "design",
        {"weights": squared_weights},
    ),
    Fault(
        "M81",
        "product of ratio and weights capped",
        "importance sampling",
        "importance",
        "design",
        {
            "ratio": capped_product,
            "weights": lambda run: run.rollout_is_weights if run.config.is_clip is None else None,
        },
    ),
)

GRADIENT = (
    Fault(
        "M17",
        "ratio not detached",
        "importance sampling",
        "gradient",
        "TRL #4935",
        {"ratio": ratio_with_gradient},
    ),
    Fault(
        "M22",
        "stop-gradient on the wrong factor of the surrogate",
        "gradient",
        "gradient",
        "design",
        {
            "sampled_divergence": lambda run: (
                (run.student_log_probs - run.teacher_log_probs) * run.student_log_probs.detach()
            )
        },
    ),
    Fault(
        "M102",
        "no stop-gradient in the surrogate",
        "gradient",
        "gradient",
        "design",
        {
            "sampled_divergence": lambda run: (
                (run.student_log_probs - run.teacher_log_probs) * run.student_log_probs
            )
        },
    ),
    Fault(
        "M103",
        "no gradient through the student's probabilities",
        "gradient",
        "gradient",
        "design",
        {
            "divergence": lambda run: straight_through(
                divergence(run), weights_held(run.student_on, run.teacher_on, run.config.alpha)
            )
        },
    ),
)
