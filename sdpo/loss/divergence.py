"""Stage `divergence`: how far the student is from the teacher at each token.

    alpha = 0        KL(teacher‖student) = Σ teacher (log teacher - log student)
    alpha = 1        KL(student‖teacher) = Σ student (log student - log teacher)
    0 < alpha < 1    (1-alpha) KL(student‖m) + alpha KL(teacher‖m)
                     with m = (1-alpha) student + alpha teacher

The mixture form is not rescaled: as alpha tends to 0 or 1 it tends to 0, not to the pure forms.
"""

import math

import torch
from torch import Tensor

from sdpo.loss.argument_shapes import check_alike


def divergence(student: Tensor, teacher: Tensor, *, alpha: float) -> Tensor:
    """Divergence between two distributions, summed over their support.

    Args:
        student: `(B, T, S)` log-probabilities, `-inf` allowed.
        teacher: `(B, T, S)` log-probabilities on the same entries, `-inf` allowed.
        alpha: which divergence, in [0, 1].

    Returns:
        `(B, T)` in nats, at least 0 up to rounding; `+inf` only where the definition is infinite.

    Raises:
        ValueError: shapes differ.

    Source: `verl/trainer/ppo/core_algos.py` 1138-1162 at 0e6d5106; paper equation for the
    generalised Jensen-Shannon divergence.
    """
    check_alike(student=student, teacher=teacher)
    if alpha == 0.0:
        return kl(teacher, student)
    if alpha == 1.0:
        return kl(student, teacher)
    mixture = log_mixture(student, teacher, alpha)
    return (1 - alpha) * kl(student, mixture) + alpha * kl(teacher, mixture)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """`KL(p‖q)` of log-probabilities over the last axis: `(…, S)` to `(…)`.

    Entries with `p` zero contribute zero, also where `q` is zero.
    """
    empty = p == -math.inf
    p, q = p.masked_fill(empty, 0.0), q.masked_fill(empty, 0.0)
    return (p.exp() * (p - q)).masked_fill(empty, 0.0).sum(-1)


def log_mixture(student: Tensor, teacher: Tensor, alpha: float) -> Tensor:
    """`log((1-alpha) exp(student) + alpha exp(teacher))`, `-inf` where both are."""
    empty = (student == -math.inf) & (teacher == -math.inf)
    student, teacher = student.masked_fill(empty, 0.0), teacher.masked_fill(empty, 0.0)
    mixture = torch.logaddexp(student + math.log(1 - alpha), teacher + math.log(alpha))
    return mixture.masked_fill(empty, -math.inf)


def sampled_token_divergence(student_log_probs: Tensor, teacher_log_probs: Tensor) -> Tensor:
    """Score-function surrogate of `KL(student‖teacher)` on the sampled token alone.

    Its gradient is `(log student - log teacher) ∇ log student`; its value is no divergence and can
    be negative.

    Args:
        student_log_probs: `(B, T)` of the response tokens.
        teacher_log_probs: `(B, T)` of the response tokens.

    Raises:
        ValueError: shapes differ.

    Source: `verl/trainer/ppo/core_algos.py` 1164-1166 at 0e6d5106.
    """
    check_alike(student_log_probs=student_log_probs, teacher_log_probs=teacher_log_probs)
    return (student_log_probs - teacher_log_probs).detach() * student_log_probs
