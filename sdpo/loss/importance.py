"""Stage `importance`: corrections for tokens that were not sampled by the present student.

Two corrections exist and both may be active: the clipped importance ratio against the policy before
the update, and the rollout weights that correct for the sampler's own probabilities.
"""

import torch
from torch import Tensor

from sdpo.loss.argument_shapes import check_alike

LOG_RATIO_LIMIT = 20.0


def importance(
    per_token_loss: Tensor,
    *,
    student_log_probs: Tensor,
    old_log_probs: Tensor | None = None,
    is_clip: float | None = None,
    rollout_is_weights: Tensor | None = None,
) -> Tensor:
    """Per-token loss times the clipped importance ratio times the rollout weights.

    No gradient passes through either factor.

    Args:
        per_token_loss: `(B, T)`.
        student_log_probs: `(B, T)` of the response tokens, present student.
        old_log_probs: `(B, T)` of the same tokens before the update; needed if `is_clip` is set.
        is_clip: upper limit of the ratio; None leaves the ratio out.
        rollout_is_weights: `(B, T)`, at least 0; None leaves them out.

    Returns:
        `(B, T)`.

    Raises:
        ValueError: `is_clip` is set and `old_log_probs` is missing, or shapes differ.

    Source: `verl/trainer/ppo/core_algos.py` 1168-1180 at 0e6d5106.
    """
    check_alike(per_token_loss=per_token_loss, student_log_probs=student_log_probs)
    check_alike(per_token_loss=per_token_loss, old_log_probs=old_log_probs)
    check_alike(per_token_loss=per_token_loss, rollout_is_weights=rollout_is_weights)
    if is_clip is not None:
        if old_log_probs is None:
            raise ValueError(
                f"is_clip={is_clip} needs old_log_probs; pass them, or is_clip=None for no ratio"
            )
        ratio = importance_ratio(student_log_probs, old_log_probs, is_clip)
        per_token_loss = per_token_loss * ratio
    if rollout_is_weights is not None:
        per_token_loss = per_token_loss * rollout_is_weights.detach()
    return per_token_loss


def importance_ratio(student_log_probs: Tensor, old_log_probs: Tensor, is_clip: float) -> Tensor:
    """`min(student / old, is_clip)` without gradient; the log ratio is kept within ±20."""
    log_ratio = (student_log_probs - old_log_probs).detach()
    return log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp().clamp(max=is_clip)


def rollout_is_weights(
    old_log_probs: Tensor,
    rollout_log_probs: Tensor,
    response_mask: Tensor,
    *,
    rollout_is_threshold: float,
) -> Tensor:
    """Truncated ratio of the training policy to the sampler, token by token.

    Args:
        old_log_probs: `(B, T)` under the policy before the update.
        rollout_log_probs: `(B, T)` under the sampler.
        response_mask: `(B, T)`, 1 where a token counts.
        rollout_is_threshold: upper limit, above 0.

    Returns:
        `(B, T)`, 0 at masked places, without gradient.

    Raises:
        ValueError: the threshold is not above 0, no token counts, or shapes differ.

    Source: `verl/trainer/ppo/rollout_corr_helper.py` 529-566 at 0e6d5106.
    """
    check_alike(old_log_probs=old_log_probs, rollout_log_probs=rollout_log_probs)
    check_alike(old_log_probs=old_log_probs, response_mask=response_mask)
    if rollout_is_threshold <= 0:
        raise ValueError(f"rollout_is_threshold must be above 0, not {rollout_is_threshold}")
    if not response_mask.any():
        raise ValueError("rollout_is_weights: response_mask has no token that counts")
    ratio = importance_ratio(old_log_probs, rollout_log_probs, rollout_is_threshold)
    return torch.where(response_mask.bool(), ratio, torch.zeros_like(ratio))
