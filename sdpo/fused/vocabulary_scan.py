"""Passes over logits `(N, V)`: normalizers, the largest entries, and the derivative by the logits.

On a GPU where Triton is installed they are kernels that read the logits once
(`sdpo.fused.triton_kernels`); those have not been run on a GPU.
"""

import importlib.util
from collections.abc import Iterable, Sequence
from functools import cache

import torch
from torch import Tensor

from sdpo.fused.lm_head import Head, blocks, logit_slope

GROUP = 64
"""Neighbouring entries that share one maximum; a power of two."""
CANDIDATES = 2**20
"""Logits that are copied at once to search them."""


def has_kernels(logits: Tensor) -> bool:
    """Whether the kernels can be used: float32 on CUDA, and Triton installed."""
    return logits.is_cuda and logits.dtype == torch.float32 and triton_installed()


@cache
def triton_installed() -> bool:
    """Whether Triton, which comes with torch's CUDA builds, is there."""
    return importlib.util.find_spec("triton") is not None


def scan(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Normalizers log Σ exp `(N, 1)` of some logits `(N, W)`, and their `group_maxima`."""
    if not has_kernels(logits):
        return normalizers_of(logits), group_maxima(logits)
    from sdpo.fused import triton_kernels

    count, width = logits.shape
    normalizers, maxima = logits.new_empty(count, 1), logits.new_empty(count, -(-width // GROUP))
    triton_kernels.scan(logits, normalizers.squeeze(-1), maxima, GROUP)
    return normalizers, maxima


def scan_blocks(
    blocks_of_logits: Iterable[Tensor], widths: Sequence[int], *, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Scan blocks of logits as they come; returns their normalizers and maxima side by side.

    Both have their memory before the first block is made. Were they kept block by block, the C
    library would often place them where the product of a block was, and could not place the next
    product there: the process then grew by up to half of the logits.

    Args:
        blocks_of_logits: `(N, W)` each.
        widths: W of each block.
        like: a tensor `(N, …)` with the logits' dtype and device.
    """
    groups = [-(-width // GROUP) for width in widths]
    normalizers = like.new_empty(len(like), len(widths))
    maxima = like.new_empty(len(like), sum(groups))
    columns = normalizers.split(1, -1), maxima.split(groups, -1)
    for block, *places in zip(blocks_of_logits, *columns, strict=True):
        for place, values in zip(places, scan(block), strict=True):
            place.copy_(values)
    return normalizers, maxima


def normalizers_of(logits: Tensor) -> Tensor:
    """The normalizers of `scan` alone."""
    return scan(logits)[0] if has_kernels(logits) else logits.logsumexp(-1, keepdim=True)


def group_maxima(logits: Tensor) -> Tensor:
    """The largest logit of each group of `GROUP` neighbours, `(N, V / GROUP, rounded up)`."""
    grouped = logits.shape[-1] // GROUP * GROUP
    # transposed, as logits may lie by columns: ten times as fast there, hardly slower elsewhere
    maxima = logits.T[:grouped].unflatten(0, (-1, GROUP)).amax(1).T
    if grouped == logits.shape[-1]:
        return maxima
    return torch.cat([maxima, logits[:, grouped:].amax(-1, keepdim=True)], -1)


def top_indices(logits: Tensor, maxima: Tensor, count: int) -> Tensor:
    """Indices `(N, count)` of the largest logits, in descending order, ties in any.

    The `count` largest lie in the `count` groups with the largest maxima: only those are searched,
    and the entries after the last full group.

    Args:
        logits: `(N, V)`.
        maxima: their `group_maxima`.
        count: K.
    """
    if count >= logits.shape[-1] // GROUP:
        return logits.topk(count, dim=-1).indices
    rows = max(1, CANDIDATES // (count * GROUP))
    pieces = zip(logits.split(rows), maxima.split(rows), strict=True)
    return torch.cat([_top_indices_at_once(*piece, count) for piece in pieces])


def _top_indices_at_once(logits: Tensor, maxima: Tensor, count: int) -> Tensor:
    full_groups = logits.shape[-1] // GROUP
    grouped, rest = logits.tensor_split([full_groups * GROUP], dim=-1)
    groups = maxima[:, :full_groups].topk(count, dim=-1).indices
    members = groups.unsqueeze(-1).expand(-1, -1, GROUP)
    in_groups = grouped.unflatten(-1, (full_groups, GROUP)).gather(1, members).flatten(1)
    best = torch.cat([in_groups, rest], dim=-1).topk(count, dim=-1).indices
    behind_groups = best - count * GROUP
    group = groups.gather(-1, (best // GROUP).clamp(max=count - 1))
    in_rest = behind_groups + full_groups * GROUP
    return torch.where(behind_groups < 0, group * GROUP + best % GROUP, in_rest)


def logit_gradient(
    logits: Tensor,
    normalizers: Tensor,
    by_normalizers: Tensor,
    indices: Tensor,
    entries: Tensor,
    by_entries: Tensor,
    head: Head,
    temperature: float,
) -> Tensor:
    """The loss's derivative by `hidden · weightᵀ + bias` `(N, V)`; overwrites the logits.

    Args:
        logits: `(N, V)` over temperature.
        normalizers: `(N, 1)`, log Σ exp of the logits.
        by_normalizers: `(N, 1)`, the loss's derivative by them.
        indices: `(N, K)`; the first may occur among the others, which differ from each other.
        entries: `(N, K)`, the logits there.
        by_entries: `(N, K)`, the loss's derivative by them.
        head: whose scale and soft cap the logits went through.
        temperature: by which they were divided.
    """
    by_entries = by_entries * logit_slope(entries, head, temperature)
    if has_kernels(logits):
        rest = indices, entries, by_entries, head, temperature
        return _gradient_by_kernel(logits, normalizers, by_normalizers, *rest)
    for part in blocks(logits.shape[-1], logits.device):
        block = logits[:, part]
        factors = logit_slope(block, head, temperature) * by_normalizers
        block.sub_(normalizers).exp_().mul_(factors)
    return logits.scatter_add_(-1, indices, by_entries)


def _gradient_by_kernel(
    logits: Tensor,
    normalizers: Tensor,
    by_normalizers: Tensor,
    indices: Tensor,
    entries: Tensor,
    by_entries: Tensor,
    head: Head,
    temperature: float,
) -> Tensor:
    """`logit_gradient` on a GPU, in bfloat16 if the head is, as autograd's by bfloat16 logits.

    `by_entries` includes the slope there.
    """
    from sdpo.fused import triton_kernels

    dtype = torch.bfloat16 if head.weight.dtype == torch.bfloat16 else logits.dtype
    softcap = None if head.softcap is None else head.softcap / temperature
    factors = by_normalizers * (head.scale / temperature)
    gradient = triton_kernels.softmax_gradient(logits, normalizers, factors, softcap, dtype)
    # the sums at the entries are rounded once, and each place is written by equal values
    same = indices == indices[:, :1]
    by_entries = torch.where(same, (by_entries * same).sum(-1, keepdim=True), by_entries)
    softmax = (entries - normalizers).exp() * by_normalizers
    total = softmax * logit_slope(entries, head, temperature) + by_entries
    return gradient.scatter_(-1, indices, total.to(dtype))
