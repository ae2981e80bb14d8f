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


def has_kernels(logits: Tensor) -> bool:
    """Whether the kernels can be used: float32 on CUDA, and Triton installed."""
    return logits.is_cuda and logits.dtype == torch.float32 and triton_installed()


@cache
def triton_installed() -> bool:
    """Whether Triton, which comes with torch's CUDA builds, is there."""
    return importlib.util.find_spec("triton") is not None


def survey(logits: Tensor) -> tuple[Tensor, Tensor | None]:
    """Normalizers log Σ exp `(N, 1)`, and the largest logit of each group of `GROUP` neighbours.

    The groups `(N, V / GROUP, rounded up)` are None where no kernel gives them in passing.
    """
    if not has_kernels(logits):
        return logits.logsumexp(-1, keepdim=True), None
    from sdpo import kernels

    count, width = logits.shape
    normalizers, maxima = logits.new_empty(count, 1), logits.new_empty(count, -(-width // GROUP))
    kernels.survey(logits, normalizers.squeeze(-1), maxima, GROUP)
    return normalizers, maxima


def likeliest(logits: Tensor, maxima: Tensor | None, count: int) -> Tensor:
    """Indices `(N, count)` of the largest logits, in descending order, ties in any.

    The `count` largest lie in the `count` groups with the largest maxima: only those are searched.
    """
    if maxima is None or count * GROUP >= logits.shape[-1]:
        return logits.topk(count, dim=-1).indices
    groups = maxima.topk(count, dim=-1).indices
    places = groups.unsqueeze(-1) * GROUP + torch.arange(GROUP, device=logits.device)
    places = places.flatten(-2)
    beyond = places >= logits.shape[-1]
    found = logits.gather(-1, places.masked_fill(beyond, 0)).masked_fill(beyond, -torch.inf)
    return places.gather(-1, found.topk(count, dim=-1).indices)


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
