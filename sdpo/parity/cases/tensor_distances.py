"""Distances between two sets of weights, or two tensors, in numbers that do not overflow."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

PIECE = 2**18
"""Entries that are compared at a time on a CPU: what fits its cache is read from memory once."""

_GPU_PIECE = 2**26
_SMALLEST = 1e-12
"""Below it the squares of a float32 norm may underflow."""

Weights = Mapping[str, Tensor]


class Match(NamedTuple):
    """How far two gradients are apart: relative distance, and cosine of their angle."""

    distance: float
    cosine: float


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
    return _quotient(gap, size)


def _quotient(gap: float, size: float) -> float:
    """A distance relative to a size; infinite if only the size is zero."""
    return gap / size if size else (math.inf if gap else 0.0)


def norms(sides: Sequence[Weights], wanted: Sequence[tuple[int, int | None]]) -> list[float]:
    """2-norms of differences of sets of weights, all in one pass over the memory.

    Args:
        sides: the sets, with the same names and shapes.
        wanted: pairs `(i, j)` for the norm of `sides[i] - sides[j]`, `(i, None)` for `sides[i]`'s.
    """
    of_pieces: list[list[Tensor]] = [[] for _ in wanted]
    for name, tensor in sides[0].items():
        size = _GPU_PIECE if tensor.is_cuda else PIECE
        for parts in zip(*(s[name].detach().flatten().split(size) for s in sides), strict=True):
            for row, (i, j) in zip(of_pieces, wanted, strict=True):
                row.append(_tensor_norm(parts[i] if j is None else parts[i] - parts[j]))
    return [math.hypot(*torch.stack(row).tolist()) if row else 0.0 for row in of_pieces]


def _tensor_norm(tensor: Tensor) -> Tensor:
    """2-norm of one tensor, in float64.

    Numerics: on a CPU float32 sums of squares are good to 1e-4 and twenty times faster than
    float64's; they are left only where squares can underflow or overflow. A GPU would have to be
    waited for to see that.
    """
    if tensor.dtype == torch.float32 and not tensor.is_cuda:
        norm = torch.linalg.vector_norm(tensor)
        if _SMALLEST < norm < 1 / _SMALLEST:
            return norm.double()
    return torch.linalg.vector_norm(tensor, dtype=torch.float64)


def same_shapes(*sides: Weights) -> bool:
    """Whether all sets have the same names with the same shapes."""
    shapes = [{name: tensor.shape for name, tensor in side.items()} for side in sides]
    return all(shape == shapes[0] for shape in shapes)


def distance(actual: Weights, expected: Weights, start: Weights | None = None) -> float:
    """How far two sets of weights are apart, relative to the expected, or to its way from `start`.

    Tensors are compared one by one, so that no vector of all weights is needed. Infinite where
    names or shapes differ, or only one side is finite.
    """
    if not same_shapes(actual, expected):
        return math.inf
    if start is None:
        gap, size = norms((actual, expected), ((0, 1), (1, None)))
    else:
        start = {name: start[name] for name in expected}
        gap, size = norms((actual, expected, start), ((0, 1), (1, 2)))
    return _relative_gap(gap, size, actual, expected)


def _relative_gap(gap: float, size: float, actual: Weights, expected: Weights) -> float:
    """A distance relative to a size, where both are finite; else the largest of the tensors'."""
    if math.isfinite(gap) and math.isfinite(size):
        return _quotient(gap, size)
    return max((relative(actual[n], expected[n]) for n in expected), default=0.0)


def match(actual: Weights, expected: Weights) -> Match:
    """Distance and cosine of two gradients; the cosine is 1 if both are zero, 0 if only one is.

    It is NaN where one is not finite.

    Numerics: the cosine follows from the three sides of the triangle, which is exact where both
    gradients are nearly equal.
    """
    if not same_shapes(actual, expected):
        return Match(math.inf, math.nan)
    gap, one, other = norms((actual, expected), ((0, 1), (0, None), (1, None)))
    far = _relative_gap(gap, other, actual, expected)
    if not math.isfinite(one + other):
        return Match(far, math.nan)
    if not one or not other:
        return Match(far, 1.0 if one == other else 0.0)
    return Match(far, min(1.0, 1 - (gap**2 - (one - other) ** 2) / (2 * one * other)))


def scale_of(tensor: Tensor) -> float:
    """Largest finite magnitude of a tensor."""
    sizes = tensor.abs().nan_to_num(nan=0.0, posinf=0.0)
    return sizes.max().item() if sizes.numel() else 0.0


def float32_error(value: Tensor, truth: Tensor) -> float:
    """Largest finite distance of a value from its float64 run ÷ the scale of the latter."""
    error = (value.double() - truth.double()).abs().nan_to_num(nan=0.0, posinf=0.0)
    scale = scale_of(truth)
    return error.max().item() / scale if scale > 0 else 0.0


def largest_by_kind(errors: Iterable[tuple[str, float]]) -> dict[str, float]:
    """The largest error of each kind of value: errors of one value may be small by luck."""
    largest: dict[str, float] = {}
    for kind, error in errors:
        largest[kind] = max(largest.get(kind, 0.0), error)
    return largest
