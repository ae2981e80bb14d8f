"""Stage `aggregate`: one number from the losses of all tokens."""

import torch
from torch import Tensor

LOSS_AGG_MODES = (
    "token-mean",
    "seq-mean-token-sum",
    "seq-mean-token-mean",
    "seq-mean-token-sum-norm",
)


def aggregate(
    per_token_loss: Tensor, loss_mask: Tensor, *, loss_agg_mode: str = "token-mean"
) -> Tensor:
    """Aggregate the losses of the tokens that count.

    | mode | value |
    |---|---|
    | `token-mean` | sum over tokens ÷ number of tokens |
    | `seq-mean-token-sum` | mean over rows of each row's sum |
    | `seq-mean-token-mean` | mean over rows of each row's mean |
    | `seq-mean-token-sum-norm` | sum over tokens ÷ padded width T, whatever the number of rows |

    Only rows with at least one token that counts are rows. Places of weight 0 have no influence,
    whatever they hold, and a batch without any token gives 0 with a zero gradient.

    Args:
        per_token_loss: `(B, T)`.
        loss_mask: `(B, T)`, weight of each token: 0 or 1.
        loss_agg_mode: one of the four modes.

    Returns:
        A scalar.

    Raises:
        ValueError: unknown mode.

    Source: `verl/trainer/ppo/core_algos.py` 1027-1082 at 0e6d5106.
    """
    weighted = torch.where(loss_mask != 0, per_token_loss * loss_mask, 0.0)
    row_tokens = loss_mask.sum(-1)
    rows = (row_tokens > 0).sum().clamp(min=1)
    if loss_agg_mode == "token-mean":
        return weighted.sum() / row_tokens.sum().clamp(min=1)
    if loss_agg_mode == "seq-mean-token-sum":
        return weighted.sum() / rows
    if loss_agg_mode == "seq-mean-token-mean":
        return (weighted.sum(-1) / row_tokens.clamp(min=1)).sum() / rows
    if loss_agg_mode == "seq-mean-token-sum-norm":
        return weighted.sum() / loss_mask.shape[-1]
    raise ValueError(f"loss_agg_mode must be one of {LOSS_AGG_MODES}, not {loss_agg_mode!r}")
