"""The language model's head: from hidden states to logits and back, a block at a time.

    logits = softcap * tanh(scale * (hidden · weightᵀ + bias) / softcap) / temperature

Blocks of the vocabulary keep what is held beside the weights small; half-precision inputs are
multiplied and added up in float32, on a GPU by its matrix units. On CPU oneDNN, where torch has it,
multiplies the few rows of a chunk up to 1.4 times as fast as `torch.mm` does; what lies by columns
it would copy first.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from sdpo.fused.gradient_buffer import lies_behind

BLOCK = 2048
GPU_BLOCK = 16384


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


def flat(side: Projection) -> Projection:
    """Hidden states `(N, H)`, and everything without gradient.

    On a GPU a float32 head is rounded to half-precision hidden states, as autocast does.
    """
    hidden, weight = side.hidden.detach().flatten(0, -2), side.head.weight.detach()
    bias = None if side.head.bias is None else side.head.bias.detach()
    if hidden.is_cuda and hidden.dtype.itemsize < weight.dtype.itemsize:
        weight = weight.to(hidden.dtype)
    return Projection(hidden, side.head._replace(weight=weight, bias=bias))


def vocabulary(side: Projection) -> Iterator[slice]:
    """The blocks of a side's vocabulary."""
    return blocks(len(side.head.weight), side.hidden.device)


def parts_of(weight: Tensor, other: Tensor, *, at_once: bool = False) -> Iterator[slice]:
    """The parts in which a head is multiplied with what has the vocabulary's size.

    One for everything on a GPU, whose many units share its sums, and if `at_once` is asked for and
    no copy of the weights in another dtype is needed.
    """
    if other.is_cuda or (at_once and weight.dtype == other.dtype):
        return iter([slice(0, len(weight))])
    return blocks(len(weight), other.device)


def product(left: Tensor, right: Tensor, *, out: Tensor | None = None) -> Tensor:
    """`left · right` in the dtype of `computing_dtype`, into `out` if that is given."""
    dtype = computing_dtype(left, right)
    if left.is_cuda and left.dtype == right.dtype != dtype:
        return torch.mm(left, right, out_dtype=dtype, out=out)
    left, right = left.to(dtype), right.to(dtype)
    by_rows = all(tensor.stride(-1) == 1 for tensor in (left, out) if tensor is not None)
    if left.device.type == "cpu" and dtype == torch.float32 and by_rows and one_dnn():
        found = torch.ops.mkldnn._linear_pointwise(left, right.T, None, "none", [], "")
        return found if out is None else out.copy_(found)
    return torch.mm(left, right, out=out)


def one_dnn() -> bool:
    """Whether torch has oneDNN's linear layer, which its compiler uses as well."""
    available = torch.backends.mkldnn.is_available()
    return available and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add `left · right` to `total`, which has the dtype of `computing_dtype`.

    Not by `product`, because it would hold `left · right`, and of few columns of `left` oneDNN is
    no faster.
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
    return finished(logits, projection.head, part, temperature)


def finished(logits: Tensor, head: Head, part: slice, temperature: float) -> Tensor:
    """What follows `hidden · weightᵀ`, in place: bias, scale, soft cap, temperature."""
    _, bias, scale, softcap = head
    if bias is not None:
        logits += bias[part]
    if scale != 1.0:
        logits *= scale
    if softcap is not None:
        logits.div_(softcap).tanh_().mul_(softcap)
    return logits if temperature == 1.0 else logits.div_(temperature)


def slope(logits: Tensor, head: Head, temperature: float) -> Tensor | float:
    """Derivative of `logits_of` by `hidden · weightᵀ + bias`, from its value."""
    if head.softcap is None:
        return head.scale / temperature
    return (1 - (logits * (temperature / head.softcap)) ** 2) * (head.scale / temperature)


class HeadGradients(NamedTuple):
    """Sums that gradients are added to, None for those that nobody wants; float32 or float64."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    def add(
        self,
        projection: Projection,
        rows: Tensor,
        grad: Tensor,
        scale: Tensor | None = None,
        room: Tensor | None = None,
    ) -> None:
        """Add what `grad` `(N, V)`, by `hidden · weightᵀ + bias`, gives.

        Args:
            projection: hidden states `(N, H)` and head.
            rows: `(N,)`, where those hidden states stand among all.
            grad: in the dtype of the sums, or in that of hidden states and head.
            scale: `(N, 1)`, what its rows are to be multiplied by; None for ones.
            room: as large as a block of `grad`, given if that lies in the memory of `weight`, which
                holds no sum yet; it is overwritten.
        """
        if self.bias is not None and scale is None:
            self.bias.add_(grad.sum(0, dtype=self.bias.dtype))
        elif self.bias is not None and scale is not None:
            self.bias.addmv_(grad.T, scale.squeeze(-1))
        if self.hidden is not None:
            found = by_hidden(projection.head.weight, grad, at_once=room is not None)
            self.hidden[rows] = found if scale is None else found.mul_(scale)
            del found
        if self.weight is not None:
            hidden = projection.hidden if grad.is_cuda else projection.hidden.to(grad.dtype)
            hidden = hidden if scale is None else hidden * scale
            add_by_weight(self.weight, hidden, grad, room)


def by_hidden(weight: Tensor, grad: Tensor, *, at_once: bool) -> Tensor:
    """`grad · weight` `(N, H)`, in parts of the vocabulary if that saves memory."""
    first, *others = parts_of(weight, grad, at_once=at_once)
    total = product(grad[:, first], weight[first])
    for part in others:
        total += product(grad[:, part], weight[part])
    return total


def add_by_weight(total: Tensor, hidden: Tensor, grad: Tensor, room: Tensor | None) -> None:
    """Add `gradᵀ · hidden` to `total` `(V, H)`; with `room`, where `grad` lies, write it there."""
    for part in parts_of(total, grad):
        own = total[part]
        if room is None:
            add_product(own, grad[:, part].T, hidden)
        elif lies_behind(part, own.shape[1], grad.stride(1)):
            torch.mm(grad[:, part].T, hidden, out=own)
        else:
            place = room.view(-1)[: own.numel()].view_as(own)
            own.copy_(torch.mm(grad[:, part].T, hidden, out=place))
