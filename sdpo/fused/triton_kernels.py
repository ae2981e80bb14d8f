"""Passes over logits on a GPU that read them once, in Triton; `vocabulary_scan` chooses them.

Imported only where Triton is installed and tensors are on CUDA. The kernels pass their tests in
Triton's interpreter on a CPU; they have not been run on a GPU.
"""

from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

GROUPS_AT_ONCE = 64
ENTRIES_AT_ONCE = 4096


def scan(logits: Tensor, normalizers: Tensor, maxima: Tensor, group: int) -> None:
    """Write log Σ exp of each row, and the largest logit of each group of neighbours.

    Args:
        logits: `(N, W)` float32, rows may lie apart.
        normalizers: `(N,)` float32, any stride; receives log Σ exp.
        maxima: `(N, W / group, rounded up)` float32, rows may lie apart; receives the maxima.
        group: entries of a group, a power of two.
    """
    count, width = logits.shape
    kernel: Any = _scan
    kernel[(count,)](
        logits,
        normalizers,
        maxima,
        width,
        logits.stride(0),
        normalizers.stride(0),
        maxima.stride(0),
        GROUP=group,
        GROUPS=GROUPS_AT_ONCE,
        num_warps=8,
    )


def softmax_gradient(
    logits: Tensor, normalizers: Tensor, factors: Tensor, softcap: float | None, dtype: torch.dtype
) -> Tensor:
    """`exp(logits - normalizers) · factors`, times the slope of a soft cap, `(N, V)` in `dtype`.

    Args:
        logits: `(N, V)` float32, contiguous rows.
        normalizers: `(N, 1)` float32.
        factors: `(N, 1)` float32.
        softcap: in the unit of the logits; None for none.
        dtype: of the result.
    """
    count, width = logits.shape
    gradient = torch.empty(count, width, dtype=dtype, device=logits.device)
    kernel: Any = _softmax_gradient
    kernel[(count, triton.cdiv(width, ENTRIES_AT_ONCE))](
        logits,
        normalizers,
        factors,
        gradient,
        width,
        logits.stride(0),
        softcap or 1.0,
        CAPPED=softcap is not None,
        ENTRIES=ENTRIES_AT_ONCE,
        num_warps=8,
    )
    return gradient


@triton.jit
def _scan(
    logits,
    normalizers,
    maxima,
    width,
    logits_stride,
    normalizers_stride,
    maxima_stride,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    groups = tl.cdiv(width, GROUP)
    inside = tl.arange(0, GROUP)
    peak = -float("inf")
    total = 0.0
    for start in range(0, groups, GROUPS):
        group = start + tl.arange(0, GROUPS)
        places = group[:, None] * GROUP + inside[None, :]
        block = tl.load(
            logits + row * logits_stride + places, mask=places < width, other=-float("inf")
        )
        largest = tl.max(block, 1)
        tl.store(maxima + row * maxima_stride + group, largest, mask=group < groups)
        higher = tl.maximum(peak, tl.max(largest, 0))
        # nothing but -inf so far: their exp is zero at any finite reference
        reference = tl.where(higher == -float("inf"), 0.0, higher)
        total = total * tl.exp(peak - reference) + tl.sum(tl.sum(tl.exp(block - reference), 1), 0)
        peak = higher
    tl.store(normalizers + row * normalizers_stride, peak + tl.log(total))


@triton.jit
def _softmax_gradient(
    logits,
    normalizers,
    factors,
    gradient,
    width,
    logits_stride,
    softcap,
    CAPPED: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    places = tl.program_id(1) * ENTRIES + tl.arange(0, ENTRIES)
    valid = places < width
    block = tl.load(logits + row * logits_stride + places, mask=valid, other=0.0)
    value = tl.exp(block - tl.load(normalizers + row)) * tl.load(factors + row)
    if CAPPED:
        ratio = block / softcap
        value *= 1.0 - ratio * ratio
    tl.store(gradient + row * width + places, value.to(gradient.dtype.element_ty), mask=valid)
