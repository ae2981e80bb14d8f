"""Log-probs of single entries, from blocks of logits and from hidden states."""

import math

import pytest
import torch
from torch import Tensor

from sdpo.fused import token_log_probs as module
from sdpo.fused.lm_head import Head, Projection
from sdpo.fused.token_log_probs import log_probs_at, token_log_probs
from tests.helpers.fused_inputs import narrow_blocks

__all__ = ["narrow_blocks"]


def in_blocks(logits: Tensor, size: int):
    for start in range(0, logits.shape[-1], size):
        part = slice(start, min(start + size, logits.shape[-1]))
        yield part, logits[:, part].clone()


def test_entries_of_several_blocks_share_one_normalizer():
    """Probabilities 1/8, 1/8, 1/4 and 1/2, in blocks of three entries and of one."""
    logits = torch.tensor([[1.0, 1.0, 2.0, 4.0]], dtype=torch.float64).log()
    found = log_probs_at(torch.tensor([[3, 0]]), in_blocks(logits, 3))
    torch.testing.assert_close(found.exp(), torch.tensor([[0.5, 0.125]], dtype=torch.float64))


@pytest.mark.parametrize(
    ("first", "rest"),
    [(0.0, 100.0), (-100.0, -100.0), (1000.0, 1000.0), (-torch.inf, -95.0), (-torch.inf, 0.0)],
)
def test_blocks_of_very_different_size(first, rest):
    logits = torch.randn(3, 43, generator=torch.Generator().manual_seed(0))
    logits[1, :16] += first
    logits[1, 16:] += rest
    indices = torch.tensor([[1, 20], [30, 42], [5, 17]])
    found = log_probs_at(indices, in_blocks(logits, 16))
    expected = logits.double().log_softmax(-1).gather(-1, indices)
    # the normalizer is rounded to float32 in its own size
    size = logits[logits.isfinite()].abs().max().item()
    atol = torch.finfo(torch.float32).eps * (size + 1)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=atol)


def test_a_row_of_nan_gives_nan_and_leaves_the_others_alone():
    logits = torch.randn(3, 43, generator=torch.Generator().manual_seed(0))
    logits[1] = torch.nan
    found = log_probs_at(torch.tensor([[1, 20]] * 3), in_blocks(logits, 16))
    assert found.isnan().all(-1).tolist() == [False, True, False]


def test_log_probs_of_responses_are_over_temperature(monkeypatch):
    """Hidden states 0 and 2 under weights 0 and ln 3: odds of 3² over the temperature 2, so 3."""
    monkeypatch.setattr(module, "TOKENS_AT_ONCE", 1)
    hidden = torch.tensor([[[0.0], [2.0]]], dtype=torch.float64)
    head = Head(torch.tensor([[0.0], [math.log(3)]], dtype=torch.float64))
    found = token_log_probs(Projection(hidden, head), torch.tensor([[0, 1]]), 2.0)
    torch.testing.assert_close(found.exp(), torch.tensor([[0.5, 0.75]], dtype=torch.float64))
