"""Stand-in: weights of the rollout correction."""

from sdpo.reference.loss import rollout_is_weights
from verl import DataProto


def compute_rollout_correction_and_rejection_mask(
    old_log_prob, rollout_log_prob, response_mask, rollout_is=None, rollout_is_threshold=2.0
):
    weights = rollout_is_weights(
        old_log_prob, rollout_log_prob, response_mask, rollout_is_threshold
    )
    return DataProto({"rollout_is_weights": weights}), response_mask, {}
