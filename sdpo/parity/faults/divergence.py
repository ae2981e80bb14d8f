"""Faults of the stage `divergence`."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sdpo.parity.faults.reference_parts import Fault, Part, Run, divergence, sampled_divergence
from sdpo.reference import loss as reference

CLIP_OF_TERMS = 0.05


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

GRADIENT = (
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
