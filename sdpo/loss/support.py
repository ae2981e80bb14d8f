"""Stages `log_probs`, `support` and `tail`: what student and teacher are compared on.

The divergence is not taken over the whole vocabulary but over the student's K likeliest tokens. The
probability left over is either kept as one more entry, the *tail*, or dropped by renormalising.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sdpo.loss.argument_shapes import check_alike, check_token_ids
from sdpo.loss.log_softmax import Logits, likeliest, log_softmax, log_softmax_at, normalized

LARGEST_LOG_MASS = -1e-7


class Support(NamedTuple):
    """The entries of the vocabulary that are compared, and both sides' log-probabilities on them.

    `indices` is `(B, T, K)` int64, or None for the full vocabulary; `student` and `teacher` are
    `(B, T, K)` or `(B, T, V)`, at most 0, `-inf` where a probability is zero.
    """

    indices: Tensor | None
    student: Tensor
    teacher: Tensor


def log_probs(logits: Logits, responses: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Log-probability of each response token.

    Args:
        logits: `(B, T, V)` floating, before temperature; row `t` predicts response token `t`. Or
            what `normalized` made of them, to share it between stages.
        responses: `(B, T)` int64 token ids.
        temperature: divides the logits.

    Returns:
        `(B, T)` in the dtype of `logits`, in nats.

    Raises:
        ValueError: `responses` are no int64 `(B, T)`.

    Source: `verl/utils/torch_functional.py` 166-200 at 0e6d5106.
    """
    check_token_ids("responses", responses, logits.shape[:-1])
    return log_softmax_at(logits, responses.unsqueeze(-1), temperature).squeeze(-1)


def support(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    distillation_topk: int | None = None,
    temperature: float = 1.0,
) -> Support:
    """Both sides' log-probabilities on the student's `distillation_topk` likeliest tokens.

    The student chooses for both sides: the teacher is read at the student's indices. The
    log-probabilities are normalised over the whole vocabulary.

    Args:
        student_logits: `(B, T, V)`, before temperature, or what `normalized` made of them.
        teacher_logits: the same of the teacher.
        distillation_topk: K, limited to V; None takes the full vocabulary.
        temperature: divides both logits.

    Raises:
        ValueError: shapes differ.

    Source: `verl/workers/actor/dp_actor.py` 526-535 at 0e6d5106; paper section 3 (top-K
    distillation).
    """
    student = normalized(student_logits, temperature)
    teacher = normalized(teacher_logits, temperature)
    check_alike(student_logits=student.logits, teacher_logits=teacher.logits)
    if distillation_topk is None:
        return Support(None, log_softmax(student), log_softmax(teacher))
    indices = likeliest(student, distillation_topk)
    return Support(indices, log_softmax_at(student, indices), log_softmax_at(teacher, indices))


def tail(log_probs: Tensor, *, distillation_add_tail: bool = True) -> Tensor:
    """Make the entries of a top-k support a distribution: add the tail, or renormalise.

    Args:
        log_probs: `(B, T, K)`, normalised over the vocabulary, so that they sum to at most one.
        distillation_add_tail: True appends the left-over mass as entry K+1; False rescales.

    Returns:
        `(B, T, K+1)` or `(B, T, K)`.

    Numerics: the log of the tail loses about unit roundoff ÷ tail mass. The left-over mass is kept
    at 1e-7 or more, as in the reference; where that limit is active no gradient passes.

    Source: `verl/trainer/ppo/core_algos.py` 1112-1131 at 0e6d5106.
    """
    log_mass = log_probs.logsumexp(-1, keepdim=True)
    if not distillation_add_tail:
        return log_probs - log_mass
    log_rest = torch.log(-torch.expm1(log_mass.clamp(max=LARGEST_LOG_MASS)))
    return torch.cat([log_probs, log_rest], dim=-1)
