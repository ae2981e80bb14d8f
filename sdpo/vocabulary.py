"""Passes over the student's logits `(N, V)`: what a loss needs of them, and its derivative by them.

On a GPU where Triton is installed they are kernels that read the logits once (`sdpo.kernels`).
"""

import importlib.util
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sdpo.heads import Head, blocks, slope

GROUP = 64
CANDIDATES = 2**20
"""Logits that are copied at once to search them."""


def has_kernels(logits: Tensor) -> bool:
    """Whether the kernels can be used: float32 on CUDA, and Triton installed."""
    return logits.is_cuda and logits.dtype == torch.float32 and triton_installed()


@cache
def triton_installed() -> bool:
    """Whether Triton, which comes with torch's CUDA builds, is there."""
    return importlib.util.find_spec("triton") is not None


def survey(logits: Tensor, scratch: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Normalizers log Σ exp `(N, 1)`, and the largest logit of each group of `GROUP` neighbours.

    The groups are `(N, V / GROUP, rounded up)`; `scratch` may be given, of the logits' shape.
    """
    if not has_kernels(logits):
        maxima = group_maxima(logits)
        return log_sum_exp(logits, maxima.amax(-1, keepdim=True), out=scratch), maxima
    from sdpo import kernels

    count, width = logits.shape
    normalizers, maxima = logits.new_empty(count, 1), logits.new_empty(count, -(-width // GROUP))
    kernels.survey(logits, normalizers.squeeze(-1), maxima, GROUP)
    return normalizers, maxima


def normalizers_of(logits: Tensor) -> Tensor:
    """The normalizers of `survey` alone; the logits are overwritten, except by the kernels."""
    if has_kernels(logits):
        return survey(logits)[0]
    return log_sum_exp(logits, logits.amax(-1, keepdim=True), out=logits)


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


def log_sum_exp(logits: Tensor, largest: Tensor, out: Tensor | None = None) -> Tensor:
    """Normalizers `(N, 1)`, given the largest logits `(N, 1)`, which logsumexp would seek again.

    The exponentials go to `out`, which may be the logits.
    """
    reference = largest.masked_fill(largest.isinf(), 0.0)  # exp of -inf is zero at any reference
    return torch.sub(logits, reference, out=out).exp_().sum(-1, keepdim=True).log_().add_(reference)


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
    by_normalizers: Tensor,
    indices: Tensor,
    by_entries: Tensor,
    head: Head,
    temperature: float,
) -> Tensor:
    """Derivative by `hidden · weightᵀ + bias`, from those by normalizers and entries, `(N, V)`.

    Args:
        logits: `(N, V)` over temperature; overwritten, except by the kernels.
        normalizers: `(N, 1)`.
        by_normalizers: `(N, 1)`, the loss's derivative by them.
        indices: `(N, K)`; the first may occur among the others, which are different.
        by_entries: `(N, K)`, the loss's derivative by the logits there.
        head: whose scale and soft cap the logits went through.
        temperature: that they were divided by.

    Returns:
        In the dtype of `logits`; of the kernels in the head's, if that is bfloat16, as autograd's
        derivative by bfloat16 logits is.
    """
    entries = logits.gather(-1, indices)
    by_entries = by_entries * slope(entries, head, temperature)
    if not has_kernels(logits):
        for part in blocks(logits.shape[-1], logits.device):
            piece = logits[:, part]
            factor = by_normalizers * slope(piece, head, temperature)
            piece.sub_(normalizers).exp_().mul_(factor)
        return logits.scatter_add_(-1, indices, by_entries)
    from sdpo import kernels

    dtype = torch.bfloat16 if head.weight.dtype == torch.bfloat16 else logits.dtype
    softcap = None if head.softcap is None else head.softcap / temperature
    factors = by_normalizers * (head.scale / temperature)
    gradient = kernels.softmax_gradient(logits, normalizers, factors, softcap, dtype)
    # the sums at the entries are rounded once, and each place is written by equal values
    same = indices == indices[:, :1]
    by_entries = torch.where(same, (by_entries * same).sum(-1, keepdim=True), by_entries)
    softmax: Any = (entries - normalizers).exp() * by_normalizers
    total = softmax * slope(entries, head, temperature) + by_entries
    return gradient.scatter_(-1, indices, total.to(dtype))
