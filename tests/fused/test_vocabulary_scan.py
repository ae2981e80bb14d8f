"""Passes over logits: normalizers, group maxima, the largest entries and the derivative.

In the tests of the whole loss a group has four entries, a block sixteen.
"""

import math

import pytest
import torch
from torch import Tensor

from sdpo.fused import fused_loss, vocabulary_scan
from sdpo.fused.lm_head import Head
from sdpo.fused.vocabulary_scan import group_maxima, logit_gradient, scan, top_indices
from tests.helpers.fused_inputs import EXACT, config, distance, inputs, narrow_blocks

__all__ = ["narrow_blocks"]
LAYOUTS = [torch.clone, lambda logits: logits.T.contiguous().T]
LARGE = 4000.0
"""A logit whose exponential no dtype can hold."""


@pytest.mark.parametrize("layout", LAYOUTS, ids=["by rows", "by columns"])
def test_the_maxima_of_groups_of_four_and_of_the_rest(layout):
    logits = layout(torch.tensor([[1.0, 5.0, 2.0, 0.0, 7.0, 7.0, 3.0, 1.0, 4.0, 6.0]]))
    assert group_maxima(logits).tolist() == [[5.0, 7.0, 6.0]]


@pytest.mark.parametrize("layout", LAYOUTS, ids=["by rows", "by columns"])
def test_the_largest_logits_are_found_in_groups_and_in_the_rest(layout):
    row = [1.0, 5.0, 2.0, 0.0, 7.0, 7.5, 3.0, 1.0, 0.0, 0.0, 0.0, 0.0, 4.0, 6.0]
    logits = layout(torch.tensor([row]))
    assert top_indices(logits, group_maxima(logits), 2).tolist() == [[5, 4]]
    assert top_indices(logits, group_maxima(logits), 3).tolist() == [[5, 4, 13]]


@pytest.mark.parametrize("shift", [0.0, LARGE, -LARGE])
def test_a_normalizer_of_equal_logits_is_their_value_and_the_log_of_their_number(shift):
    normalizers, maxima = scan(torch.full((1, 8), shift, dtype=torch.float64))
    assert normalizers.item() == pytest.approx(shift + math.log(8))
    assert maxima.tolist() == [[shift, shift]]


def test_the_derivative_is_the_softmax_and_the_entries_at_their_indices():
    """Probabilities 1/4, 1/4, 1/2 by a normalizer's derivative of -2; 3 at the last entry."""
    logits = torch.tensor([[0.0, 0.0, math.log(2)]], dtype=torch.float64)
    found = logit_gradient(
        logits.clone(),
        normalizers=torch.tensor([[math.log(4)]], dtype=torch.float64),
        by_normalizers=torch.tensor([[-2.0]], dtype=torch.float64),
        indices=torch.tensor([[2]]),
        entries=logits[:, 2:],
        by_entries=torch.tensor([[3.0]], dtype=torch.float64),
        head=Head(torch.zeros(3, 1)),
        temperature=1.0,
    )
    torch.testing.assert_close(found, torch.tensor([[-0.5, -0.5, 2.0]], dtype=torch.float64))


@pytest.mark.parametrize("layout", LAYOUTS, ids=["by rows", "by columns"])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_the_derivative_is_autograds_through_scale_soft_cap_and_temperature(layout, softcap):
    random = torch.Generator().manual_seed(0)
    head, temperature = Head(torch.zeros(43, 2), None, 0.5, softcap), 0.7
    raw = torch.randn(3, 43, generator=random, dtype=torch.float64).requires_grad_()
    scaled = raw * head.scale
    capped = scaled if softcap is None else softcap * torch.tanh(scaled / softcap)
    logits = capped / temperature
    normalizers = logits.logsumexp(-1, keepdim=True)
    indices = torch.tensor([[1, 2], [20, 20], [41, 42]])
    by_normalizers, by_entries = torch.tensor([[0.3], [0.0], [-2.0]]).double(), torch.ones(3, 2)
    total = (normalizers * by_normalizers).sum() + logits.gather(-1, indices).sum()
    (expected,) = torch.autograd.grad(total, raw)
    values = layout(logits.detach())
    of_entries = indices, values.gather(-1, indices), by_entries.double()
    found = logit_gradient(
        values, normalizers.detach(), by_normalizers, *of_entries, head, temperature
    )
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("chunk_tokens", [2, None])
@pytest.mark.parametrize("mode", ["topk_tail", "topk_renorm", "sampled"])
def test_logits_whose_exponentials_no_dtype_can_hold(mode, chunk_tokens):
    on = inputs()
    assert on.student.head.bias is not None
    assert on.teacher.head.bias is not None
    on.student.head.bias.data += LARGE
    on.teacher.head.bias.data[16:] += LARGE
    assert distance(on, config(mode), chunk_tokens=chunk_tokens) < EXACT


@pytest.mark.parametrize("mode", ["topk_tail", "topk_renorm", "sampled"])
def test_a_token_whose_loss_has_weight_zero(mode):
    on = inputs()
    on.optional["rollout_is_weights"][0] = 0
    assert distance(on, config(mode)) < EXACT


def test_blocks_are_scanned_side_by_side():
    blocks = torch.randn(3, 2 * vocabulary_scan.GROUP), torch.randn(3, vocabulary_scan.GROUP + 1)
    widths = [block.shape[1] for block in blocks]
    normalizers, maxima = vocabulary_scan.scan_blocks(blocks, widths, like=blocks[0])
    assert normalizers.tolist() == [
        [b[row].logsumexp(0).item() for b in blocks] for row in range(3)
    ]
    group = vocabulary_scan.GROUP
    expected = [
        blocks[0][:, :group],
        blocks[0][:, group:],
        blocks[1][:, :group],
        blocks[1][:, group:],
    ]
    assert maxima.T.tolist() == [part.amax(1).tolist() for part in expected]


# --- planted faults -----------------------------------------------------------------------------


def log_of_sum(logits: Tensor) -> tuple[Tensor, Tensor]:
    return logits.exp().sum(-1, keepdim=True).log(), group_maxima(logits)


def only_groups(logits: Tensor, maxima: Tensor, count: int) -> Tensor:
    width = logits.shape[-1] // vocabulary_scan.GROUP * vocabulary_scan.GROUP
    return top_indices(logits[:, :width], maxima, count)


FAULTS = {
    "exponentials of the logits as they are": (vocabulary_scan, "scan", log_of_sum),
    "entries after the last full group not searched": (fused_loss, "top_indices", only_groups),
}


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_seen(name, monkeypatch):
    monkeypatch.setattr(*FAULTS[name])
    with pytest.raises(AssertionError):
        test_logits_whose_exponentials_no_dtype_can_hold("topk_tail", 2)
