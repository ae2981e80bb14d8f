"""Rollout-correction weights of tokens by the fork's own function."""

from torch import Tensor

from sdpo.parity.live_fork.modules import ROLLOUT_CORRECTION, live_function


def live_rollout_weights(
    old_log_probs: Tensor, rollout_log_probs: Tensor, threshold: float, response_mask: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """Weights `(B, T)` truncated at the threshold, and what the fork logs of them.

    Raises:
        ValueError: as the fork does, for a mask without tokens or a threshold of 0.
    """
    correct = live_function(ROLLOUT_CORRECTION, "compute_rollout_correction_and_rejection_mask")
    made, _, metrics = correct(
        old_log_prob=old_log_probs,
        rollout_log_prob=rollout_log_probs,
        response_mask=response_mask,
        rollout_is="token",
        rollout_is_threshold=threshold,
    )
    return made.batch["rollout_is_weights"], metrics
