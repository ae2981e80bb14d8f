"""Losses with few knobs, as strangers write them: each correct, and with mistakes of its own."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


def _mean(per_token: Tensor, mask: Tensor) -> Tensor:
    kept = torch.where(mask.bool(), per_token, torch.zeros_like(per_token))
    return kept.sum() / (mask.sum() + 1e-8)


def _kl(left: Tensor, right: Tensor) -> Tensor:
    """KL(left‖right) of log-probs; an entry without mass adds nothing."""
    terms = left.exp() * (left - right)
    return torch.where(left == -torch.inf, torch.zeros_like(terms), terms).sum(-1)


def _of(logits: Tensor, tokens: Tensor) -> Tensor:
    return logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def sampled_tokens(student_logits, teacher_logits, responses, response_mask):
    student, teacher = _of(student_logits, responses), _of(teacher_logits, responses)
    return _mean((student - teacher).detach() * student, response_mask)


def sampled_tokens_without_detach(student_logits, teacher_logits, responses, response_mask):
    student, teacher = _of(student_logits, responses), _of(teacher_logits, responses).detach()
    return _mean((student - teacher) * student, response_mask)


def sampled_tokens_shifted(student_logits, teacher_logits, responses, response_mask):
    moved = responses.roll(1, -1)
    student, teacher = _of(student_logits, moved), _of(teacher_logits, moved)
    return _mean((student - teacher).detach() * student, response_mask)


def jensen_shannon(student_logits, teacher_logits, responses, response_mask):
    student, teacher = student_logits.log_softmax(-1), teacher_logits.detach().log_softmax(-1)
    middle = torch.logaddexp(student, teacher) - torch.log(torch.tensor(2.0, dtype=student.dtype))
    return _mean(0.5 * _kl(teacher, middle) + 0.5 * _kl(student, middle), response_mask)


def jensen_shannon_doubled(student_logits, teacher_logits, responses, response_mask):
    return 2 * jensen_shannon(student_logits, teacher_logits, responses, response_mask)


def jensen_shannon_over_all(student_logits, teacher_logits, responses, response_mask):
    everything = torch.ones_like(response_mask)
    return jensen_shannon(student_logits, teacher_logits, responses, everything)


def teacher_to_student(student_logits, teacher_logits, responses, response_mask, temperature=1.0):
    student = (student_logits / temperature).log_softmax(-1)
    teacher = (teacher_logits.detach() / temperature).log_softmax(-1)
    return _mean(_kl(teacher, student), response_mask)


def teacher_to_student_squared(
    student_logits, teacher_logits, responses, response_mask, temperature=1.0
):
    given = (student_logits, teacher_logits, responses, response_mask, temperature)
    return teacher_to_student(*given) * temperature**2


def by_config(student_logits, teacher_logits, responses, response_mask, *, config):
    if not config.full_logit_distillation or config.distillation_topk is None:
        raise NotImplementedError("only a top-k")
    if config.is_clip is not None or config.loss_agg_mode != "token-mean":
        raise NotImplementedError("no ratio, no other mean")
    if config.distillation_add_tail or config.alpha != 0.0:
        raise NotImplementedError("only KL(teacher‖student), renormalised")
    k = min(config.distillation_topk, student_logits.shape[-1])
    student = (student_logits / config.temperature).log_softmax(-1)
    teacher = (teacher_logits.detach() / config.temperature).log_softmax(-1)
    chosen, places = student.topk(k, -1)
    others = teacher.gather(-1, places)
    return _mean(_kl(others.log_softmax(-1), chosen.log_softmax(-1)), response_mask)


def by_config_not_renormalised(student_logits, teacher_logits, responses, response_mask, *, config):
    if config.distillation_topk is None or config.distillation_add_tail or config.alpha != 0.0:
        raise NotImplementedError("only KL(teacher‖student) of a top-k")
    if config.is_clip is not None or config.loss_agg_mode != "token-mean":
        raise NotImplementedError("no ratio, no other mean")
    k = min(config.distillation_topk, student_logits.shape[-1])
    student = (student_logits / config.temperature).log_softmax(-1)
    teacher = (teacher_logits.detach() / config.temperature).log_softmax(-1)
    chosen, places = student.topk(k, -1)
    return _mean(_kl(teacher.gather(-1, places), chosen), response_mask)


def with_k(student_logits, teacher_logits, responses, response_mask, k):
    student, teacher = student_logits.log_softmax(-1), teacher_logits.detach().log_softmax(-1)
    chosen, places = student.topk(min(k, student.shape[-1]), -1)
    others = teacher.gather(-1, places)
    return _mean(_kl(chosen.log_softmax(-1), others.log_softmax(-1)), response_mask)


class Narrow(NamedTuple):
    """A loss with the words for what it lacks."""

    loss: Callable[..., Tensor]
    lacks: tuple[str, ...]


_OPTIONS = ("ratio", "rollout weights", "rows without teacher", "three means")
CORRECT = (
    Narrow(sampled_tokens, ("full vocabulary", "top-k", "temperature", *_OPTIONS)),
    Narrow(jensen_shannon, ("top-k", "sampled tokens", "alpha but 0.5", "temperature", *_OPTIONS)),
    Narrow(teacher_to_student, ("top-k", "sampled tokens", "alpha but 0", *_OPTIONS)),
    Narrow(by_config, ("full vocabulary", "tail", "sampled tokens", "alpha but 0", *_OPTIONS)),
    Narrow(
        with_k,
        ("full vocabulary", "tail", "sampled tokens", "alpha but 1", "temperature", *_OPTIONS),
    ),
)
WRONG = {
    sampled_tokens_without_detach: ("divergence", "gradient"),
    sampled_tokens_shifted: ("log_probs",),
    jensen_shannon_doubled: ("aggregate", "divergence"),
    jensen_shannon_over_all: ("aggregate",),
    teacher_to_student_squared: ("aggregate", "log_probs"),
    by_config_not_renormalised: ("tail", "support"),
}
"""Losses with a mistake, and the stages at which it may be said to begin."""
