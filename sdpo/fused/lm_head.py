"""The language model's head: from hidden states to logits and back, a block at a time.

    logits = softcap * tanh(scale * (hidden · weightᵀ + bias) / softcap) / temperature

Blocks of the vocabulary keep what is held beside the weights small; half-precision inputs are
multiplied and added up in float32, on a GPU by its matrix units. On a CPU oneDNN, where torch has
it, multiplies the few rows of a chunk up to 1.4 times as fast as `torch.mm`; matrices that lie by
columns it would copy first, so they go to `torch.mm`.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from sdpo.fused.gradient_buffer import gradient_ends_before_logits

BLOCK = 2048
GPU_BLOCK = 16384
"""A first guess that has not been run on a GPU."""


class Head(NamedTuple):
    """What turns the last hidden state into logits.

    `weight` is `(V, H)`, `bias` `(V,)` or None; `scale` multiplies (Cohere's `logit_scale`, one
    over Granite's `logits_scaling`), `softcap` is Gemma's `final_logit_softcapping`.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None


class Projection(NamedTuple):
    """Hidden states `(…, H)` and the head that they go through."""

    hidden: Tensor
    head: Head


def computing_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any tensor is, else float32."""
    wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if wide else torch.float32


def blocks(width: int, device: torch.device) -> Iterator[slice]:
    """Consecutive parts of the vocabulary."""
    size = GPU_BLOCK if device.type == "cuda" else BLOCK
    for start in range(0, width, size):
        yield slice(start, min(start + size, width))


def detached_rows(side: Projection) -> Projection:
    """Hidden states `(N, H)`, and everything without gradient.

    On a GPU a float32 head is rounded to half-precision hidden states, as autocast does. This has
    not been run on a GPU.
    """
    hidden, weight = side.hidden.detach().flatten(0, -2), side.head.weight.detach()
    bias = None if side.head.bias is None else side.head.bias.detach()
    if hidden.is_cuda and hidden.dtype.itemsize < weight.dtype.itemsize:
        weight = weight.to(hidden.dtype)
    return Projection(hidden, side.head._replace(weight=weight, bias=bias))


def vocabulary_blocks(side: Projection) -> Iterator[slice]:
    """The blocks of a side's vocabulary."""
    return blocks(len(side.head.weight), side.hidden.device)


def product(left: Tensor, right: Tensor, *, out: Tensor | None = None) -> Tensor:
    """`left · right` in the dtype of `computing_dtype`, into `out` if that is given.

    The branch of half precision on a GPU has not been run.
    """
    dtype = computing_dtype(left, right)
    if left.is_cuda and left.dtype == right.dtype != dtype:
        return torch.mm(left, right, out_dtype=dtype, out=out)
    left, right = left.to(dtype), right.to(dtype)
    by_rows = all(tensor.stride(-1) == 1 for tensor in (left, out) if tensor is not None)
    if left.device.type == "cpu" and dtype == torch.float32 and by_rows and has_one_dnn():
        result = torch.ops.mkldnn._linear_pointwise(left, right.T, None, "none", [], "")
        return result if out is None else out.copy_(result)
    return torch.mm(left, right, out=out)


def has_one_dnn() -> bool:
    """Whether torch has oneDNN's linear layer, which its compiler uses as well."""
    available = torch.backends.mkldnn.is_available()
    return available and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add `left · right` to `total`, which has the dtype of `computing_dtype`.

    Not by `product`, because it would hold `left · right`, and of few columns of `left` oneDNN is
    no faster. The branch of half precision on a GPU has not been run.
    """
    if left.is_cuda and left.dtype == right.dtype != total.dtype:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(left.to(total.dtype), right.to(total.dtype))


def logits_of(
    projection: Projection, part: slice, temperature: float, out: Tensor | None = None
) -> Tensor:
    """Logits `(N, width of the part)` over temperature, in the dtype of `computing_dtype`.

    Args:
        projection: hidden states `(N, H)` and head.
        part: of the vocabulary.
        temperature: divides the logits.
        out: where to write them.
    """
    logits = product(projection.hidden, projection.head.weight[part].T, out=out)
    _, bias, scale, softcap = projection.head
    if bias is not None:
        logits += bias[part]
    if scale != 1.0:
        logits *= scale
    if softcap is not None:
        logits.div_(softcap).tanh_().mul_(softcap)
    return logits if temperature == 1.0 else logits.div_(temperature)


def logit_slope(logits: Tensor, head: Head, temperature: float) -> Tensor | float:
    """Derivative of `logits_of` by `hidden · weightᵀ + bias`, from its value."""
    if head.softcap is None:
        return head.scale / temperature
    return (1 - (logits * (temperature / head.softcap)) ** 2) * (head.scale / temperature)


class HeadGradients(NamedTuple):
    """Sums to which chunks add their gradients, in float32 or float64; None where not wanted."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    def add(
        self,
        projection: Projection,
        positions: Tensor,
        by_logits: Tensor,
        scratch: Tensor | None = None,
    ) -> None:
        """Add what the derivative by `hidden · weightᵀ + bias` gives.

        Args:
            projection: hidden states `(N, H)` and head.
            positions: `(N,)`, where those hidden states stand among all.
            by_logits: the derivative, `(N, V)`, in the dtype of the sums, or in that of hidden
                states and head.
            scratch: as large as a block of the head's gradient, given if `by_logits` lies in the
                buffer of that gradient, which holds no sum yet; overwritten.
        """
        if self.bias is not None:
            self.bias.add_(by_logits.sum(0, dtype=self.bias.dtype))
        if self.hidden is not None:
            self.hidden[positions] = _by_hidden(projection.head.weight, by_logits)
        if self.weight is not None:
            hidden = projection.hidden
            hidden = hidden if by_logits.is_cuda else hidden.to(by_logits.dtype)
            _add_by_weight(self.weight, hidden, by_logits, scratch)


def _by_hidden(weight: Tensor, by_logits: Tensor) -> Tensor:
    """`by_logits · weight` `(N, H)`, block by block where the weights must be copied to float32."""
    if by_logits.is_cuda or weight.dtype == by_logits.dtype:
        return product(by_logits, weight)
    first, *others = blocks(len(weight), weight.device)
    total = product(by_logits[:, first], weight[first])
    for part in others:
        total += product(by_logits[:, part], weight[part])
    return total


def _add_by_weight(
    total: Tensor, hidden: Tensor, by_logits: Tensor, scratch: Tensor | None
) -> None:
    """Add `by_logitsᵀ · hidden` to `total` `(V, H)`; with `scratch`, write it over `by_logits`."""
    if by_logits.is_cuda:  # at once: its many units share the sums
        _add_product(total, by_logits.T, hidden)
        return
    for part in blocks(len(total), total.device):
        rows, columns = total[part], by_logits[:, part].T
        if scratch is None:
            _add_product(rows, columns, hidden)
        elif gradient_ends_before_logits(part, rows.shape[1], by_logits.stride(1)):
            torch.mm(columns, hidden, out=rows)
        else:
            block = scratch.view(-1)[: rows.numel()].view_as(rows)
            rows.copy_(torch.mm(columns, hidden, out=block))
