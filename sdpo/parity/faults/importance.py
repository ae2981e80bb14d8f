"""Faults of the stage `importance`: the ratio and the rollout weights."""

import math
from copy import copy

import torch
from torch import Tensor

from sdpo.parity.faults.reference_parts import (
    FaultParts,
    LossPart,
    LossState,
    importance_ratio,
    loss_mask,
)
from sdpo.reference.loss import log_probs_from_logits

LARGEST_LOG_RATIO = 20.0


def log_ratio(state: LossState) -> Tensor:
    """Compute the log ratio without gradient.

    Raises:
        ValueError: old log-probs are missing.
    """
    if state.old_log_probs is None:
        raise ValueError("is_clip needs old_log_probs")
    return (state.student_log_probs - state.old_log_probs).detach()


def _limited_log_ratio(state: LossState, limit: float = LARGEST_LOG_RATIO) -> Tensor:
    """Compute the log ratio, kept within plus and minus a limit."""
    return log_ratio(state).clamp(-limit, limit)


def cap(state: LossState) -> float:
    """Return the upper limit of the ratio; infinity if there is none."""
    return math.inf if state.config.is_clip is None else state.config.is_clip


def _not_limited(state: LossState) -> Tensor:
    """Exponentiate the log ratio without its limit of ±20."""
    return log_ratio(state).exp().clamp(max=cap(state))


def _limited_to(limit: float) -> LossPart:
    """Keep the log ratio within another limit."""
    return lambda state: _limited_log_ratio(state, limit).exp().clamp(max=cap(state))


def _rows_compacted(state: LossState) -> Tensor:
    """Leave rows without teacher out of the student's log-probs, and not of the old ones.

    Raises:
        ValueError: old log-probs are missing.
    """
    old, mask = state.old_log_probs, state.self_distillation_mask
    if old is None or mask is None:
        return importance_ratio(state)
    kept = (mask != 0).nonzero().flatten()
    moved = copy(state)
    moved.old_log_probs = old.clone()
    moved.old_log_probs[kept] = old[: len(kept)]
    return importance_ratio(moved)


def _clipped_from_below(state: LossState) -> Tensor:
    """Take the cap for a floor."""
    return _limited_log_ratio(state).exp().clamp(min=cap(state))


def _applied_twice(state: LossState) -> Tensor:
    """Square the ratio."""
    return importance_ratio(state).square()


def _at_other_temperature(state: LossState) -> Tensor:
    """Take the present log-probs at temperature 1, the old ones at the setting's."""
    present = log_probs_from_logits(state.student_logits, state.responses)
    return _ratio_of(state, present)


def _upside_down(state: LossState) -> Tensor:
    """Divide the old probability by the present one."""
    return (-_limited_log_ratio(state)).exp().clamp(max=cap(state))


def _of_the_teacher(state: LossState) -> Tensor:
    """Divide the teacher's probability by the old policy's."""
    return _ratio_of(state, state.teacher_log_probs)


def _left_out(state: LossState) -> Tensor:
    """Weigh every token by one."""
    return torch.ones_like(state.student_log_probs)


def _not_capped(state: LossState) -> Tensor:
    """Leave the cap of the ratio out."""
    return _limited_log_ratio(state).exp()


def _log_ratio_capped(state: LossState) -> Tensor:
    """Cap the log ratio at the limit of the ratio."""
    return _limited_log_ratio(state).clamp(max=cap(state)).exp()


def _of_the_row(state: LossState) -> Tensor:
    """Give each row one ratio: that of the mean log ratio of its tokens."""
    total = (log_ratio(state) * state.loss_mask).sum(-1, keepdim=True)
    mean = total / state.loss_mask.sum(-1, keepdim=True).clamp(min=1)
    limited = mean.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    return limited.exp().clamp(max=cap(state)).expand_as(state.loss_mask)


def _divided_by_mean(state: LossState) -> Tensor:
    """Divide the ratio by its mean over the tokens that count."""
    ratio = importance_ratio(state)
    return ratio / _mean_over_counted(ratio, state.loss_mask)


def _capped_on_both_sides(state: LossState) -> Tensor:
    """Keep the ratio above 1 ÷ cap too."""
    return _limited_log_ratio(state).exp().clamp(1 / cap(state), cap(state))


def _at_least_one(state: LossState) -> Tensor:
    """Keep the ratio from falling below 1."""
    return importance_ratio(state).clamp(min=1.0)


def _token_loss_capped(state: LossState) -> Tensor:
    """Scale so that the token's loss, and not the ratio, is at most the cap."""
    ratio = _limited_log_ratio(state).exp()
    limit = cap(state) / state.token_losses.detach().abs().clamp(min=1e-12)
    return torch.where(state.token_losses * ratio > cap(state), limit, ratio).detach()


def product_capped(state: LossState) -> Tensor:
    """Cap the product of ratio and rollout weights instead of the ratio."""
    product = _not_capped(state)
    if state.rollout_is_weights is not None:
        product = product * state.rollout_is_weights
    return product.clamp(max=cap(state))


def _weights_without_ratio_only(state: LossState) -> Tensor | None:
    """Apply the rollout weights where the ratio does not hold them already."""
    return state.rollout_is_weights if state.config.is_clip is None else None


def _weights_left_out(state: LossState) -> None:
    """Ignore the rollout weights."""


def _weights_squared(state: LossState) -> Tensor | None:
    """Square the rollout weights."""
    return None if state.rollout_is_weights is None else state.rollout_is_weights.square()


def _weights_at_most_one(state: LossState) -> Tensor | None:
    """Cap the rollout weights at 1."""
    return None if state.rollout_is_weights is None else state.rollout_is_weights.clamp(max=1.0)


def _weights_by_mean(state: LossState) -> Tensor | None:
    """Divide the rollout weights by their mean over the tokens that count."""
    weights = state.rollout_is_weights
    if weights is None:
        return None
    return weights / _mean_over_counted(weights, loss_mask(state)).clamp(min=1e-6)


def _mean_over_counted(values: Tensor, mask: Tensor) -> Tensor:
    """Average values over the tokens that count."""
    counts = mask != 0
    return torch.where(counts, values, 0.0).sum() / counts.sum().clamp(min=1)


def _ratio_of(state: LossState, log_probs: Tensor) -> Tensor:
    """Compute the ratio of other log-probs to the old ones."""
    other = copy(state)
    other.student_log_probs = log_probs
    return importance_ratio(other)


FAULTS: FaultParts = {
    "M17b": {"importance_ratio": _not_limited},
    "M17c": {"importance_ratio": _clipped_from_below},
    "M18": {"importance_ratio": _applied_twice},
    "M19": {"importance_ratio": _at_other_temperature},
    "M71": {"importance_ratio": _upside_down},
    "M72": {"importance_ratio": _of_the_teacher},
    "M73": {"importance_ratio": _left_out},
    "M74": {"rollout_weights": _weights_left_out},
    "M75": {"rollout_weights": _weights_squared},
    "M76": {"importance_ratio": _not_capped},
    "M77": {"importance_ratio": _log_ratio_capped},
    "M78": {"importance_ratio": _of_the_row},
    "M79": {"importance_ratio": _divided_by_mean},
    "M80": {"importance_ratio": _capped_on_both_sides},
    "M81": {"importance_ratio": product_capped, "rollout_weights": _weights_without_ratio_only},
    "M124": {"importance_ratio": _limited_to(10.0)},
    "M125": {"importance_ratio": _at_least_one},
    "M126": {"rollout_weights": _weights_at_most_one},
    "M127": {"rollout_weights": _weights_by_mean},
    "M128": {"importance_ratio": _token_loss_capped},
    "M151": {"importance_ratio": _rows_compacted},
}
