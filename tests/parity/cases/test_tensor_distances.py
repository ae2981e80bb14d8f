"""Distances of weights: against plain formulas in float64, and where float32 squares would fail."""

import math

import pytest
import torch

from sdpo.parity.cases import tensor_distances
from sdpo.parity.cases.tensor_distances import distance, match, norms


def sets(count: int, scale: float = 1.0) -> list[dict[str, torch.Tensor]]:
    random = torch.Generator().manual_seed(0)
    shapes = {"a": (7, 5), "b": (3,), "c": (2, 2, 2)}
    return [
        {name: scale * torch.randn(shape, generator=random) for name, shape in shapes.items()}
        for _ in range(count)
    ]


def flat(side):
    return torch.cat([tensor.double().flatten() for tensor in side.values()])


@pytest.mark.parametrize("piece", [4, 1000])
@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
def test_norms_and_distances_are_those_of_the_joined_vectors(piece, scale, monkeypatch):
    monkeypatch.setattr(tensor_distances, "PIECE", piece)
    one, other, start = sets(3, scale)
    a, b, c = (flat(side) for side in (one, other, start))
    found = norms((one, other, start), ((0, 1), (1, None), (1, 2)))
    assert found == pytest.approx([(a - b).norm().item(), b.norm().item(), (b - c).norm().item()])
    assert distance(one, other) == pytest.approx(((a - b).norm() / b.norm()).item())
    assert distance(one, other, start) == pytest.approx(((a - b).norm() / (b - c).norm()).item())
    cosine = ((a / a.norm()) @ (b / b.norm())).item()
    assert match(one, other) == pytest.approx((distance(one, other), cosine))


def test_other_names_shapes_and_values_that_are_not_finite_are_infinitely_far():
    one, other = sets(2)
    assert distance(one, {**other, "d": torch.ones(1)}) == math.inf
    assert distance({**one, "b": torch.ones(4)}, other) == math.inf
    assert distance({**one, "b": torch.tensor([0.0, math.nan, 0.0])}, other) == math.inf
    far, cosine = match({"a": one["a"]}, one)
    assert far == math.inf
    assert math.isnan(cosine)


def test_two_gradients_of_zero_agree_and_one_does_not():
    zero = {"a": torch.zeros(3)}
    assert match(zero, zero) == (0.0, 1.0)
    assert match({"a": torch.ones(3)}, zero) == (math.inf, 0.0)
    assert match({}, {}) == (0.0, 1.0)
