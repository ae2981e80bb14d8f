"""Sums and means over three rows of losses that can be added in one's head."""

import math

import pytest
import torch

from sdpo.loss.aggregate import aggregate

LOSSES = torch.tensor([[1.0, 2.0, 3.0, 100.0], [10.0, 100.0, 100.0, 100.0], [100.0] * 4])
MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
"""Row sums 6 of three tokens, 10 of one, and no token at all."""


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("token-mean", 16 / 4),  # (6 + 10) over four tokens
        ("seq-mean-token-sum", 16 / 2),  # (6 + 10) over two rows
        ("seq-mean-token-mean", (2 + 10) / 2),  # means 2 and 10 over two rows
        ("seq-mean-token-sum-norm", 16 / 4),  # (6 + 10) over the width of four
    ],
)
def test_tokens_and_rows_are_counted_as_the_mode_says(mode, expected):
    assert aggregate(LOSSES, MASK, loss_agg_mode=mode).item() == expected


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("token-mean", [1 / 4] * 4),
        ("seq-mean-token-sum", [1 / 2] * 4),
        ("seq-mean-token-mean", [1 / 6, 1 / 6, 1 / 6, 1 / 2]),
        ("seq-mean-token-sum-norm", [1 / 4] * 4),
    ],
)
def test_each_token_weighs_what_the_mode_gives_it(mode, expected):
    """The derivative by each loss; places that do not count have none."""
    losses = LOSSES.clone().requires_grad_()
    (weights,) = torch.autograd.grad(aggregate(losses, MASK, loss_agg_mode=mode), losses)
    assert weights[MASK == 1].tolist() == pytest.approx(expected)
    assert not weights[MASK == 0].any()


def test_a_longer_padding_dilutes_only_the_norm_of_the_width():
    """Four more columns of padding: 16/8 in place of 16/4, all other means as before."""
    wide = torch.nn.functional.pad(LOSSES, (0, 4)), torch.nn.functional.pad(MASK, (0, 4))
    assert aggregate(*wide, loss_agg_mode="seq-mean-token-sum-norm").item() == 2
    assert aggregate(*wide, loss_agg_mode="token-mean").item() == 4


def test_what_is_masked_may_be_anything():
    losses = torch.where(MASK == 1, LOSSES, math.nan)
    assert aggregate(losses, MASK, loss_agg_mode="token-mean").item() == 4


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-sum", "seq-mean-token-mean"])
def test_a_batch_without_tokens_has_the_loss_zero(mode):
    assert aggregate(LOSSES, torch.zeros_like(MASK), loss_agg_mode=mode).item() == 0
