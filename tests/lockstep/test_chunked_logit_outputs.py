"""The reference's outputs, computed piece by piece: the same bits, also of the derivative."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sdpo.lockstep import chunked_logit_outputs
from sdpo.lockstep.chunked_logit_outputs import outputs_by_piece
from sdpo.reference.forward import logit_outputs

ROWS, TOKENS, VOCABULARY = 3, 7, 50
MODES: dict[str, dict[str, Any]] = {
    "top-k": {"topk": 5},
    "full vocabulary": {"all_log_probs": True},
    "sampled token": {},
    "top-k and entropy": {"topk": 5, "entropy": True},
}


@pytest.fixture(params=[1, 600, 2**20], ids=["two or three tokens", "some tokens", "whole"])
def cache_bytes(request, monkeypatch):
    monkeypatch.setattr(chunked_logit_outputs, "CACHE_BYTES", request.param)


def both(dtype: torch.dtype, options: dict[str, Any], used: slice = slice(None)) -> list[list]:
    """Values, and the derivative of some of them, of the reference and by pieces."""
    random = torch.Generator().manual_seed(0)
    wide = torch.randn(ROWS, TOKENS + 3, VOCABULARY, generator=random).mul(4).to(dtype)
    labels = torch.randint(VOCABULARY, (ROWS, TOKENS), generator=random)
    found = []
    for function in (logit_outputs, outputs_by_piece):
        leaf = wide.clone().requires_grad_()
        values = function(leaf[:, 1:-2], labels, **options)  # a view, as the reference cuts it
        random.manual_seed(1)
        parts = [v for v in values.values() if v.is_floating_point()][used]
        total = sum((part * torch.randn(part.shape, generator=random)).sum() for part in parts)
        assert isinstance(total, Tensor)
        (gradient,) = torch.autograd.grad(total, leaf)
        found.append([*values, *values.values(), gradient])
    return found


def same(one: list, other: list) -> bool:
    """Equality of names and, bit by bit, of tensors."""
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


@pytest.mark.usefixtures("cache_bytes")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_values_and_derivative_have_the_bits_of_the_reference(mode, dtype):
    assert same(*both(dtype, MODES[mode]))


@pytest.mark.usefixtures("cache_bytes")
@pytest.mark.parametrize("used", [slice(0, 1), slice(1, 2)], ids=["log-probs", "top-k"])
def test_a_value_that_nothing_uses_has_no_part_in_the_derivative(used):
    assert same(*both(torch.float32, MODES["top-k"], used))


@pytest.mark.usefixtures("cache_bytes")
def test_given_indices_are_used():
    logits = torch.randn(ROWS, TOKENS, VOCABULARY, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(ROWS, TOKENS, dtype=torch.long)
    indices = logits.flip(-1).topk(4).indices
    with torch.no_grad():
        sides = [
            [*function(logits, labels, topk=4, topk_indices=indices).values()]
            for function in (logit_outputs, outputs_by_piece)
        ]
    assert same(*sides)
    assert torch.equal(sides[1][2], indices)


FAULTS = {
    "another value's derivative": ("topk_log_probs", lambda z, *rest: z[..., :5] * 1.0),
    "derivative without the normalizer": ("log_probs", lambda z, labels, _: z[..., 0] * 1.0),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_derivative_would_be_seen(fault, monkeypatch):
    name, function = FAULTS[fault]
    monkeypatch.setitem(chunked_logit_outputs.RECOMPUTE, name, function)
    assert not same(*both(torch.float32, MODES["top-k"]))
