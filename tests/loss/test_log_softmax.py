"""Log-probs of some entries, normalised once: as plain autograd's, bit for bit, piece by piece."""

import math

import pytest
import torch
from torch import Tensor

from sdpo.loss import log_softmax
from sdpo.loss.log_softmax import (
    NormalizedLogits,
    likeliest,
    log_softmax_at,
    places,
)
from sdpo.loss.support import log_probs, support

ROWS, TOKENS, VOCABULARY, COUNT = 3, 7, 50, 5


def logits(dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(ROWS, TOKENS + 3, VOCABULARY, generator=generator).mul(4).to(dtype)
    return wide[:, 1:-2]  # as a trainer cuts the responses out: rows are not contiguous


def plain(logits: Tensor, indices: Tensor, temperature: float, counts: Tensor) -> Tensor:
    z = torch.where(counts.unsqueeze(-1), logits, 0.0) / temperature
    return z.gather(-1, indices) - z.logsumexp(-1, keepdim=True)


@pytest.fixture(params=[1, 600, 2**20], ids=["two or three tokens", "some tokens", "whole"])
def cache_bytes(request, monkeypatch):
    monkeypatch.setattr(log_softmax, "CACHE_BYTES", request.param)


@pytest.mark.usefixtures("cache_bytes")
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_values_and_gradient_are_those_of_plain_autograd(dtype, temperature):
    leaf = logits(dtype).clone().requires_grad_()
    counts = torch.ones(ROWS, TOKENS, dtype=torch.bool)
    counts[0, 4:], counts[2] = False, False
    side = NormalizedLogits(leaf, temperature, counts)
    indices = likeliest(side, COUNT)
    expected = plain(leaf, indices, temperature, counts)
    actual = log_softmax_at(side, indices)
    assert torch.equal(actual, expected)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    gradients = [torch.autograd.grad((v * weights).sum(), leaf)[0] for v in (actual, expected)]
    assert torch.equal(*gradients)
    assert torch.equal(gradients[0] != 0, counts.unsqueeze(-1).expand_as(leaf))
    chosen = torch.where(counts.unsqueeze(-1), leaf, 0.0) / temperature
    assert torch.equal(chosen.gather(-1, indices), chosen.topk(COUNT).values)


@pytest.mark.usefixtures("cache_bytes")
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_nothing_passes_from_places_that_do_not_count(poison):
    leaf = logits().clone().requires_grad_()
    counts = torch.ones(ROWS, TOKENS, dtype=torch.bool)
    counts[1, 2:] = False
    with torch.no_grad():
        leaf[~counts] = poison
    side = NormalizedLogits(leaf, 0.7, counts)
    found = log_softmax_at(side, likeliest(side, COUNT))
    assert torch.allclose(found[~counts], torch.tensor(-math.log(VOCABULARY)))
    (gradient,) = torch.autograd.grad(found.sum(), leaf)
    assert gradient.isfinite().all()
    assert not gradient[~counts].any()
    assert log_softmax.log_softmax(side).isfinite().all()


@pytest.mark.usefixtures("cache_bytes")
def test_an_entry_may_be_named_twice():
    leaf = logits(torch.float64).clone().requires_grad_()
    indices = torch.full((ROWS, TOKENS, 2), 3)
    (actual,) = torch.autograd.grad(log_softmax_at(leaf, indices).sum(), leaf)
    (expected,) = torch.autograd.grad(2 * leaf.log_softmax(-1)[..., 3].sum(), leaf)
    torch.testing.assert_close(actual, expected)


def test_stages_take_logits_or_their_softmax():
    student, teacher = logits(), logits().flip(-1)
    responses = torch.randint(
        VOCABULARY, (ROWS, TOKENS), generator=torch.Generator().manual_seed(2)
    )
    sides = NormalizedLogits(student, 0.7), NormalizedLogits(teacher, 0.7)
    assert torch.equal(
        log_probs(sides[0], responses), log_probs(student, responses, temperature=0.7)
    )
    for topk in (COUNT, VOCABULARY + 1, None):
        shared = support(*sides, distillation_topk=topk)
        single = support(student, teacher, distillation_topk=topk, temperature=0.7)
        for actual, expected in zip(shared[1:], single[1:], strict=True):
            assert torch.equal(actual, expected)


@pytest.mark.usefixtures("cache_bytes")
@pytest.mark.parametrize("shape", [(2, 3, 9), (7, 9), (1, 1, 9)])
def test_every_place_is_visited_once(shape):
    tensor = torch.zeros(shape)
    for piece in places(tensor):
        tensor[piece] += 1
    assert tensor.eq(1).all()


def test_a_lone_token_is_added_up_as_among_others(monkeypatch):
    """Of a single row torch sums parts of the vocabulary in parallel."""
    wide = torch.randn(1, 33, 100_000, generator=torch.Generator().manual_seed(0)) - 14
    wide[..., 0] = 0  # so that normalizers are small numbers, which show their last bits
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = wide.logsumexp(-1, keepdim=True)
        alone = torch.cat([row.logsumexp(-1, keepdim=True) for row in wide[0].split(1)])
        assert not torch.equal(alone, expected[0])
        for tokens in (1, 2, 32):
            monkeypatch.setattr(log_softmax, "CACHE_BYTES", tokens * wide[0, 0].nbytes)
            assert torch.equal(NormalizedLogits(wide).normalizers, expected)
    finally:
        torch.set_num_threads(threads)
