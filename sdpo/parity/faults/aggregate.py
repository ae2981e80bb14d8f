"""Faults of the stage `aggregate`: masks, and how token losses become one number."""

from copy import copy

import torch
from torch import Tensor

from sdpo.parity.faults.reference_parts import (
    FaultParts,
    LossPart,
    LossState,
    aggregate,
    loss_mask,
)
from sdpo.reference.loss import agg_loss

_SEQUENCE_MEANS = ("seq-mean-token-sum", "seq-mean-token-mean")


def _only_in(*modes: str, part: LossPart) -> LossPart:
    """Change some modes of aggregation only."""
    return lambda state: part(state) if state.config.loss_agg_mode in modes else aggregate(state)


def _token_mean_by(part: LossPart) -> LossPart:
    """Change `token-mean` only."""
    return _only_in("token-mean", part=part)


def _norm_mode_by(part: LossPart) -> LossPart:
    """Change `seq-mean-token-sum-norm` only."""
    return _only_in("seq-mean-token-sum-norm", part=part)


def _in_mode(mode: str) -> LossPart:
    """Aggregate in another mode."""
    return lambda state: agg_loss(
        state.token_losses, state.loss_mask, mode, state.loss_mask.sum().clamp(min=1.0)
    )


def _counted_losses(state: LossState) -> Tensor:
    """Return the token losses, zero where a token does not count."""
    losses = state.token_losses
    return torch.where(state.loss_mask != 0, losses, torch.zeros_like(losses)) * state.loss_mask


def _sum_divided_by(state: LossState, tokens: Tensor | float) -> Tensor:
    """Divide the sum over the tokens that count by `tokens`."""
    return _counted_losses(state).sum() / tokens


def _row_values(state: LossState) -> Tensor:
    """Reduce each row to its sum or mean, as the mode asks."""
    rows = (state.token_losses * state.loss_mask).sum(-1)
    if state.config.loss_agg_mode == "seq-mean-token-mean":
        return rows / (state.loss_mask.sum(-1) + 1e-8)
    return rows


def _summed_over_the_row(state: LossState) -> Tensor:
    """Give each token the sum of its row."""
    summed = copy(state)
    summed.token_losses = _counted_losses(state).sum(-1, keepdim=True).expand_as(state.loss_mask)
    return aggregate(summed)


def _mean_over_all_rows(state: LossState) -> Tensor:
    """Average over all rows, masked rows too."""
    return _row_values(state).mean()


def _mean_of_row_means(state: LossState) -> Tensor:
    """Average the token means of all rows."""
    return (_counted_losses(state).sum(-1) / state.loss_mask.sum(-1).clamp(min=1)).mean()


def _by_halves(state: LossState) -> Tensor:
    """Average two micro-batches, each with its own denominator."""
    half = (len(state.loss_mask) + 1) // 2
    losses = []
    for rows in (slice(None, half), slice(half, None)):
        mask, token_losses = state.loss_mask[rows], state.token_losses[rows]
        if len(mask) and mask.any():
            tokens = mask.sum().clamp(min=1.0)
            losses.append(agg_loss(token_losses, mask, state.config.loss_agg_mode, tokens))
    return torch.stack(losses).mean() if losses else aggregate(state)


def _by_longest_row(state: LossState) -> Tensor:
    """Divide the norm mode by the longest row instead of the padded width."""
    return _sum_divided_by(state, state.loss_mask.sum(-1).max().clamp(min=1))


def _rows_without_signal_count(state: LossState) -> Tensor:
    """Count rows without teacher signal in the denominator."""
    if state.config.loss_agg_mode == "token-mean":
        return _sum_divided_by(state, state.response_mask.sum().clamp(min=1.0))
    if state.config.loss_agg_mode == "seq-mean-token-sum-norm":
        return aggregate(state)
    return _row_values(state).sum() / (state.response_mask.sum(-1) > 0).sum()


def _numerator_unmasked(state: LossState) -> Tensor:
    """Apply the distillation mask in the denominator only."""
    mode = state.config.loss_agg_mode
    if mode == "token-mean":
        tokens = state.loss_mask.sum().clamp(min=1.0)
        return agg_loss(state.token_losses, state.response_mask, "token-mean", tokens)
    rows = (state.token_losses * state.response_mask).sum(-1)
    if mode == "seq-mean-token-sum-norm":
        return rows.sum() / state.loss_mask.shape[-1]
    if mode == "seq-mean-token-mean":
        rows = rows / state.loss_mask.sum(-1).clamp(min=1)
    return rows.sum() / (state.loss_mask.sum(-1) > 0).sum()


def _in_bfloat16(state: LossState) -> Tensor:
    """Round the token losses to bfloat16 before aggregation."""
    exact = state.token_losses
    state.token_losses = exact.bfloat16().to(exact.dtype)
    value = aggregate(state)
    state.token_losses = exact
    return value


def _by_padded_width(state: LossState) -> Tensor:
    """Divide the sum of each row by the padded width."""
    return _in_mode("seq-mean-token-sum")(state) / state.loss_mask.shape[-1]


def _times_temperature_squared(state: LossState) -> Tensor:
    """Scale the loss as distillation from softened targets does."""
    return aggregate(state) * state.config.temperature**2


def _distillation_mask_dropped(state: LossState) -> Tensor:
    """Ignore the distillation mask."""
    return state.response_mask


def _padding_included(state: LossState) -> Tensor:
    """Count every place of a row with teacher signal."""
    if state.self_distillation_mask is None:
        return torch.ones_like(state.response_mask)
    return torch.ones_like(state.response_mask) * state.self_distillation_mask.unsqueeze(1)


def _mask_one_late(state: LossState) -> Tensor:
    """Take the mask for that of the token before."""
    return loss_mask(state).roll(1, dims=1)


def _mask_one_early(state: LossState) -> Tensor:
    """Take the mask for that of the token after; nothing counts in the last column."""
    mask = loss_mask(state)
    return torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)


def _last_token_dropped(state: LossState) -> Tensor:
    """Leave the last token of each row out."""
    mask = loss_mask(state)
    columns = torch.arange(mask.shape[1]).expand_as(mask)
    last = torch.where(mask != 0, columns, -1).max(-1, keepdim=True).values
    return mask * (columns != last)


def _divided(tokens: LossPart) -> LossPart:
    """Divide the sum in `token-mean` by another number of tokens."""
    return _token_mean_by(lambda state: _sum_divided_by(state, tokens(state)))


FAULTS: FaultParts = {
    "M07": {"aggregate": _only_in(*_SEQUENCE_MEANS, part=_mean_over_all_rows)},
    "M08": {"aggregate": _token_mean_by(_in_mode("seq-mean-token-mean"))},
    "M09": {"aggregate": _divided(lambda state: float(len(state.loss_mask)))},
    "M10": {"aggregate": _by_halves},
    "M13": {"loss_mask": _padding_included},
    "M15": {"loss_mask": _distillation_mask_dropped},
    "M15b": {"aggregate": _numerator_unmasked},
    "M16": {"aggregate": _divided(lambda state: state.loss_mask.sum())},
    "M82": {"aggregate": _divided(lambda state: float(state.loss_mask.numel()))},
    "M83": {"aggregate": _only_in("seq-mean-token-mean", part=_by_padded_width)},
    "M84": {"aggregate": _norm_mode_by(lambda state: aggregate(state) / len(state.loss_mask))},
    "M85": {"aggregate": _norm_mode_by(_by_longest_row)},
    "M86": {"aggregate": _divided(lambda state: 1.0)},
    "M87": {"aggregate": _in_mode("token-mean")},
    "M88": {"loss_mask": _mask_one_late},
    "M89": {"loss_mask": _last_token_dropped},
    "M90": {"aggregate": _rows_without_signal_count},
    "M91": {"aggregate": _in_bfloat16},
    "M92": {"aggregate": _divided(lambda state: (state.loss_mask.sum() - 1).clamp(min=1.0))},
    "M104": {"aggregate": _times_temperature_squared},
    "M115": {"aggregate": _token_mean_by(_mean_of_row_means)},
    "M131": {"loss_mask": _mask_one_early},
    "M132": {"aggregate": lambda state: aggregate(state) / 2},
    "M150": {"aggregate": _summed_over_the_row},
}
