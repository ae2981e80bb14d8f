"""Stage `aggregate`: one number from the losses of all tokens."""

import torch
from torch import Tensor

from sdpo.loss.argument_shapes import check_alike
from sdpo.settings.rules import LOSS_AGG_MODES


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
        A scalar, of the dtype that the reference gives: float32 at least where rows are counted, or
        tokens by a mask of integers.

    Raises:
        ValueError: unknown mode, or another shape of the mask.

    Numerics: a mean of rows is taken in float32 at least, whatever the losses' dtype; `1.0` as a
    limit makes a count of integers float32.

    Source: `verl/trainer/ppo/core_algos.py` 1057-1080 at 0e6d5106.
    """
    check_alike(per_token_loss=per_token_loss, loss_mask=loss_mask)
    weighted = torch.where(loss_mask != 0, per_token_loss * loss_mask, 0.0)
    row_sums, row_tokens = weighted.sum(-1), loss_mask.sum(-1)
    counted = (row_tokens > 0).float()
    rows = counted.sum().clamp(min=1)
    if loss_agg_mode == "token-mean":
        return weighted.sum() / loss_mask.sum().clamp(min=1.0)
    if loss_agg_mode == "seq-mean-token-sum":
        return (row_sums * counted).sum() / rows
    if loss_agg_mode == "seq-mean-token-mean":
        return (row_sums / row_tokens.clamp(min=1.0) * counted).sum() / rows
    if loss_agg_mode == "seq-mean-token-sum-norm":
        return row_sums.sum() / max(loss_mask.shape[-1], 1)
    raise ValueError(f"loss_agg_mode must be one of {LOSS_AGG_MODES}, not {loss_agg_mode!r}")
