"""Passes over the student's logits `(N, V)`: what a loss needs of them, and its derivative by them.

On a GPU where Triton is installed they are kernels that read the logits once
(`sdpo.fused.triton_kernels`).
"""

import importlib.util
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sdpo.fused.lm_head import Head, blocks, slope

GROUP = 64
CANDIDATES = 2**20
"""Logits that are copied at once to search them."""
MODERATE = -16.0, 48.0
"""Largest logits of a token whose exponentials are taken as they are."""
FEW, MANY = 1e-30, 1e30
"""Factors and ratios between which float32 multiplies what it should."""


def has_kernels(logits: Tensor) -> bool:
    """Whether the kernels can be used: float32 on CUDA, and Triton installed."""
    return logits.is_cuda and logits.dtype == torch.float32 and triton_installed()


@cache
def triton_installed() -> bool:
    """Whether Triton, which comes with torch's CUDA builds, is there."""
    return importlib.util.find_spec("triton") is not None


def survey(logits: Tensor) -> tuple[Tensor, Tensor]:
    """By the kernels: normalizers log Σ exp `(N, 1)`, and `group_maxima`."""
    from sdpo.fused import triton_kernels

    count, width = logits.shape
    normalizers, maxima = logits.new_empty(count, 1), logits.new_empty(count, -(-width // GROUP))
    triton_kernels.survey(logits, normalizers.squeeze(-1), maxima, GROUP)
    return normalizers, maxima


def reference_of(largest: Tensor) -> Tensor:
    """What to subtract from logits before exp `(N, 1)`, given a large one of each token.

    Zero where exp and sums of it are far from both ends of float32 without, so that it can be left
    out; zero too for infinity: exp of -inf is zero at any reference.
    """
    low, high = MODERATE
    kept = ((largest >= low) & (largest <= high)) | ~largest.isfinite()
    return torch.where(kept, 0.0, largest)


def within_reach(normalizers: Tensor, reference: Tensor) -> bool:
    """Whether no token's exponentials have grown or shrunk too much by their reference."""
    near = normalizers.isfinite() & (normalizers >= reference + MODERATE[0])
    return bool(near.all())


def sum_of_exponentials(logits: Tensor, reference: Tensor) -> Tensor:
    """Σ exp(logits - reference) `(N, 1)`; the exponentials overwrite the logits."""
    if logits.is_cuda or bool(reference.any()):
        logits.sub_(reference)
    logits.exp_()
    if logits.stride(-1) == 1:
        return logits.sum(-1, keepdim=True)
    # columns are added up by a product, which takes half the time, and in groups, which round less
    whole, columns = logits.shape[-1] // GROUP * GROUP, logits.T
    groups = columns.new_ones(1, GROUP) @ columns[:whole].unflatten(0, (-1, GROUP))
    return torch.cat([groups.squeeze(1), columns[whole:]]).sum(0, keepdim=True).T


def exponentials(
    logits: Tensor, largest: Tensor, head: Head, temperature: float
) -> tuple[Tensor, Tensor]:
    """Overwrite logits z by what is softmax(z), times the slope of a soft cap, but for a factor.

    Args:
        logits: `(N, V)` over temperature.
        largest: of each token, `(N, 1)`.
        head: whose scale and soft cap the logits went through.
        temperature: that they were divided by.

    Returns:
        Normalizers log Σ exp z and the factors, `(N, 1)` both: factors times what `logits` then
        holds is the normalizers' derivative by `hidden · weightᵀ + bias`.
    """
    reference, parts = reference_of(largest), []
    for part in blocks(logits.shape[-1], logits.device):
        piece = logits[:, part]
        steep = slope(piece, head, temperature)
        parts.append(sum_of_exponentials(piece, reference))
        if isinstance(steep, Tensor):
            piece.mul_(steep)
    sums = torch.cat(parts, -1)
    # block by block as the teacher's are, so that equal moderate logits round alike
    normalizers = sums.log().add_(reference).logsumexp(-1, keepdim=True)
    rest = head.scale / temperature if head.softcap is None else 1.0
    return normalizers, rest / sums.sum(-1, keepdim=True)


def group_maxima(logits: Tensor) -> Tensor:
    """The largest logit of each group of `GROUP` neighbours, `(N, V / GROUP, rounded up)`."""
    whole = logits.shape[-1] // GROUP * GROUP
    if logits.stride(-1) == 1:
        maxima = logits[:, :whole].unflatten(-1, (-1, GROUP)).amax(-1)
    else:  # the same by columns, which takes a tenth of the time if it is written so
        maxima = logits.T[:whole].unflatten(0, (-1, GROUP)).amax(1).T
    if whole == logits.shape[-1]:
        return maxima
    return torch.cat([maxima, logits[:, whole:].amax(-1, keepdim=True)], -1)


def likeliest(logits: Tensor, maxima: Tensor, count: int) -> Tensor:
    """Indices `(N, count)` of the largest logits, in descending order, ties in any.

    The `count` largest lie in the `count` groups with the largest maxima: only those are searched,
    and the entries after the last whole group.
    """
    if count >= logits.shape[-1] // GROUP:
        return logits.topk(count, dim=-1).indices
    rows = max(1, CANDIDATES // (count * GROUP))
    pieces = zip(logits.split(rows), maxima.split(rows), strict=True)
    return torch.cat([search(some, theirs, count) for some, theirs in pieces])


def search(logits: Tensor, maxima: Tensor, count: int) -> Tensor:
    """`likeliest` of some rows."""
    whole = logits.shape[-1] // GROUP
    groups = maxima[:, :whole].topk(count, dim=-1).indices
    grouped = logits[:, : whole * GROUP].unflatten(-1, (whole, GROUP))
    found = grouped.gather(1, groups.unsqueeze(-1).expand(-1, -1, GROUP)).flatten(1)
    rest = logits[:, whole * GROUP :]
    candidates = torch.cat([found, rest], dim=-1) if rest.shape[-1] else found
    best = candidates.topk(count, dim=-1).indices
    beyond = best - count * GROUP
    group = groups.gather(-1, (best // GROUP).clamp(max=count - 1))
    return torch.where(beyond < 0, group * GROUP + best % GROUP, beyond + whole * GROUP)


def spread(
    logits: Tensor,
    normalizers: Tensor,
    factors: Tensor | None,
    by_normalizers: Tensor,
    indices: Tensor,
    entries: Tensor,
    by_entries: Tensor,
    head: Head,
    temperature: float,
) -> tuple[Tensor, Tensor | None]:
    """Derivative by `hidden · weightᵀ + bias`, from those by normalizers and entries.

    Args:
        logits: `(N, V)`, of the kernels over temperature, else overwritten by `exponentials`;
            overwritten, except by the kernels.
        normalizers: `(N, 1)`.
        factors: of `exponentials`, `(N, 1)`; None of the kernels.
        by_normalizers: `(N, 1)`, the loss's derivative by them.
        indices: `(N, K)`; the first may occur among the others, which are different.
        entries: `(N, K)`, the logits there over temperature.
        by_entries: `(N, K)`, the loss's derivative by them.
        head: whose scale and soft cap the logits went through.
        temperature: that they were divided by.

    Returns:
        `(N, V)` and what its rows are to be multiplied by, `(N, 1)`; of the kernels None, and the
        first in the head's dtype, if that is bfloat16, as autograd's derivative by bfloat16 logits.
    """
    by_entries = by_entries * slope(entries, head, temperature)
    if factors is not None:
        return scaled(logits, by_normalizers * factors, indices, by_entries)
    from sdpo.fused import triton_kernels

    dtype = torch.bfloat16 if head.weight.dtype == torch.bfloat16 else logits.dtype
    softcap = None if head.softcap is None else head.softcap / temperature
    factors = by_normalizers * (head.scale / temperature)
    gradient = triton_kernels.softmax_gradient(logits, normalizers, factors, softcap, dtype)
    # the sums at the entries are rounded once, and each place is written by equal values
    same = indices == indices[:, :1]
    by_entries = torch.where(same, (by_entries * same).sum(-1, keepdim=True), by_entries)
    softmax: Any = (entries - normalizers).exp() * by_normalizers
    total = softmax * slope(entries, head, temperature) + by_entries
    return gradient.scatter_(-1, indices, total.to(dtype)), None


def scaled(
    values: Tensor, scale: Tensor, indices: Tensor, by_entries: Tensor
) -> tuple[Tensor, Tensor]:
    """`scale · values`, plus `by_entries` at `indices`, as values and scale; in place.

    A pass over the values is saved by leaving the scale to who multiplies the rows with a matrix,
    except where the sum over it would be too large, or the scale is too small, zero above all.
    """
    largest = by_entries.abs().amax(-1, keepdim=True)
    apart = (scale.abs() >= FEW) & (largest <= scale.abs() * MANY)
    if not bool(apart.all()):
        values.mul_(torch.where(apart, 1.0, scale))
        scale = torch.where(apart, scale, 1.0)
    return values.scatter_add_(-1, indices, by_entries / scale), scale
