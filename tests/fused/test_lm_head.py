"""The head against transformers' own arithmetic, and its derivative against autograd."""

import pytest
import torch

from sdpo.fused import lm_head
from sdpo.fused.lm_head import Head, HeadGradients, Projection, blocks, logit_slope, logits_of

CPU = torch.device("cpu")
SHAPES = {"plain": (1.0, None), "scale": (0.25, None), "softcap": (1.0, 3.0), "both": (0.5, 2.0)}


@pytest.fixture(autouse=True)
def narrow_blocks(monkeypatch):
    monkeypatch.setattr(lm_head, "BLOCK", 4)


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def plainly(leaves, scale, softcap, temperature):
    """The whole of the logits, as models write it."""
    hidden, weight, bias = leaves
    logits = (hidden @ weight.T + bias) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits / temperature


@pytest.mark.parametrize("available", [True, False])
def test_products_are_those_of_float64(available, monkeypatch):
    """By oneDNN, which this torch should have, and without."""
    assert lm_head.has_one_dnn()
    monkeypatch.setattr(lm_head, "has_one_dnn", lambda: available)
    left, right = numbers(7, 33), numbers(41, 33, seed=1).T
    out = torch.empty(7, 50)
    for place in (None, out[:, 3:44]):
        found = lm_head.product(left.float(), right.float(), out=place)
        torch.testing.assert_close(found.double(), left @ right, rtol=1e-5, atol=1e-5)
        assert place is None or found.data_ptr() == place.data_ptr()
    assert lm_head.product(left, right).dtype == torch.float64


def test_blocks_cover_the_vocabulary_once():
    for width in (1, 4, 9):
        assert [i for part in blocks(width, CPU) for i in range(part.start, part.stop)] == [
            *range(width)
        ]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logits_and_gradients_are_autograds(name, temperature):
    scale, softcap = SHAPES[name]
    hidden, weight, bias = numbers(3, 5), numbers(9, 5, seed=1), numbers(9, seed=2)
    leaves = [tensor.clone().requires_grad_() for tensor in (hidden, weight, bias)]
    expected = plainly(leaves, scale, softcap, temperature)
    upstream = numbers(3, 9, seed=3)
    wanted = torch.autograd.grad(expected, leaves, upstream)

    head = Head(weight, bias, scale, softcap)
    actual = torch.cat(
        [logits_of(Projection(hidden, head), part, temperature) for part in blocks(9, CPU)], dim=-1
    )
    torch.testing.assert_close(actual, expected.detach(), rtol=1e-14, atol=1e-14)
    sums = HeadGradients(*(torch.zeros_like(tensor) for tensor in (hidden, weight, bias)))
    rows = torch.tensor([2, 0, 1])
    steep = upstream * logit_slope(actual, head, temperature)
    sums.add(Projection(hidden[rows], head), rows, steep[rows])
    for found, expected_gradient in zip(sums, wanted, strict=True):
        torch.testing.assert_close(found, expected_gradient, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_multiplied_and_added_in_float32(dtype):
    """Bit for bit what the same numbers give in float32."""
    hidden, weight = numbers(3, 64, dtype=dtype), numbers(9, 64, seed=1, dtype=dtype)
    narrow = logits_of(Projection(hidden, Head(weight)), slice(0, 9), 1.0)
    wide = logits_of(Projection(hidden.float(), Head(weight.float())), slice(0, 9), 1.0)
    assert narrow.dtype == torch.float32
    assert torch.equal(narrow, wide)


def test_gradients_that_nobody_wants_are_not_made():
    sums = HeadGradients(None, torch.zeros(9, 5), None)
    projection = Projection(torch.ones(2, 5), Head(torch.ones(9, 5)))
    sums.add(projection, torch.tensor([0, 1]), torch.ones(2, 9))
    assert sums.weight is not None
    assert bool((sums.weight == 2).all())
