"""Distances between two sets of weights, or two tensors, in numbers that do not overflow."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

PIECE = 2**18
SMALLEST = 1e-12
"""Below it the squares of a float32 norm may underflow."""


def relative(actual: Tensor, expected: Tensor) -> float:
    """2-norm of the difference ÷ 2-norm of the expected; infinite if only one is finite."""
    actual, expected = actual.double(), expected.double()
    if actual.shape != expected.shape:
        return math.inf
    finite = expected.isfinite()
    if not torch.equal(actual.isfinite(), finite):
        return math.inf
    gap = torch.where(finite, actual - expected, 0.0).norm().item()
    size = torch.where(finite, expected, 0.0).norm().item()
    return quotient(gap, size)


def quotient(gap: float, size: float) -> float:
    """A distance relative to a size; infinite if only the size is zero."""
    return gap / size if size else (math.inf if gap else 0.0)


def norm(tensors: list[Tensor]) -> float:
    """2-norm of all entries.

    Numerics: float32 sums of squares are good to 1e-4 and twenty times faster than float64's; they
    are left only where squares can underflow or overflow.
    """
    return math.hypot(*(tensor_norm(tensor) for tensor in tensors))


def tensor_norm(tensor: Tensor) -> float:
    """2-norm of one tensor."""
    found = torch.linalg.vector_norm(tensor).item()
    if tensor.dtype == torch.float64 or (SMALLEST < found < 1 / SMALLEST):
        return found
    return torch.linalg.vector_norm(tensor, dtype=torch.float64).item()


def gap_norm(one: Tensor, other: Tensor) -> float:
    """2-norm of a difference, taken in pieces that fit a cache instead of a new tensor."""
    pieces = zip(one.detach().flatten().split(PIECE), other.flatten().split(PIECE), strict=True)
    return math.hypot(*(tensor_norm(a - b) for a, b in pieces))


def distance(
    actual: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    start: Mapping[str, Tensor] | None = None,
) -> float:
    """How far two sets of weights are apart, relative to the expected, or to its way from `start`.

    Tensors are compared one by one, so that no vector of all weights is needed. Infinite where
    names or shapes differ, or only one side is finite.
    """
    shapes = [{name: tensor.shape for name, tensor in side.items()} for side in (actual, expected)]
    if shapes[0] != shapes[1]:
        return math.inf
    gap = math.hypot(*(gap_norm(actual[name], expected[name]) for name in expected))
    if start is None:
        size = norm(list(expected.values()))
    else:
        size = math.hypot(*(gap_norm(expected[name], start[name]) for name in expected))
    if math.isfinite(gap) and math.isfinite(size):
        return quotient(gap, size)
    return max((relative(actual[n], expected[n]) for n in expected), default=0.0)


def cosine(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Cosine of two gradients; 1 if both are zero.

    Numerics: from the three sides of the triangle, which is exact where both are nearly equal.
    """
    if actual.keys() != expected.keys():
        return math.nan
    one, other = norm(list(actual.values())), norm(list(expected.values()))
    if not one or not other:
        return 1.0 if one == other else 0.0
    gap = math.hypot(*(gap_norm(actual[name], expected[name]) for name in expected))
    return min(1.0, 1 - (gap**2 - (one - other) ** 2) / (2 * one * other))
