"""What the reference takes from logits, a few tokens at a time: the same bits in less time.

The reference goes over all logits of a micro-batch `(B, T, V)` again and again. Its values at a
token come from that token's logits alone, so they can be computed, and later differentiated, for as
many tokens at a time as the processor's cache holds.
"""

from collections.abc import Callable, Iterator
from types import EllipsisType
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from sdpo.reference.forward import LogitOptions, entropy_from_logits, logit_outputs
from sdpo.reference.loss import log_probs_from_logits, topk_log_probs

CACHE_BYTES, _GPU_BYTES = 4 * 2**20, 256 * 2**20
TokenIndex = tuple[int | slice | EllipsisType, ...]
"""Indexes some tokens of `(B, T, …)`."""
Recompute = Callable[[Tensor, Tensor, Tensor | None], Tensor]

RECOMPUTE: dict[str, Recompute] = {
    "log_probs": lambda logits, labels, indices: log_probs_from_logits(logits, labels),
    "topk_log_probs": lambda logits, labels, indices: topk_log_probs(logits, 0, indices)[0],
    "all_log_probs": lambda logits, labels, indices: F.log_softmax(logits, dim=-1),
    "entropy": lambda logits, labels, indices: entropy_from_logits(logits),
}
"""Computes each value that has a gradient again, from logits, labels and indices."""


def outputs_by_piece(
    logits: Tensor,
    labels: Tensor,
    *,
    topk_indices: Tensor | None = None,
    **options: Unpack[LogitOptions],
) -> dict[str, Tensor]:
    """Compute the reference's `logit_outputs`, bit for bit where a row has two tokens or more.

    Args:
        logits: `(B, T, V)` floating, after temperature.
        labels: `(B, T)` int64.
        topk_indices: `(B, T, K)` int64, which replace the choice of the largest.
        options: the others of `logit_outputs`.

    Returns:
        `log_probs` `(B, T)` and what is asked for, in the dtype of the logits. The derivative is
        that of autograd through the reference's own functions; there is no second one.
    """
    names: list[str] = []
    values: Any = _ByPiece.apply(logits, labels, topk_indices, options, names)
    return dict(zip(names, values, strict=True))


class _ByPiece(torch.autograd.Function):
    """`logit_outputs`, without a graph that holds tensors of the size of the logits."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        labels: Tensor,
        topk_indices: Tensor | None,
        options: LogitOptions,
        names: list[str],
    ) -> tuple[Tensor, ...]:
        """Compute the values in the order of `names`, which is filled."""
        pieces = [
            logit_outputs(z, label, topk_indices=indices, **options)
            for _, z, label, indices in _pieces(logits, labels, topk_indices)
        ]
        names += pieces[0]
        shape = logits.shape[:-1]
        values = {
            name: torch.cat([piece[name].flatten(0, 1) for piece in pieces]).unflatten(0, shape)
            for name in names
        }
        indices = values.get("topk_indices")
        if indices is not None:
            ctx.mark_non_differentiable(indices)
        ctx.save_for_backward(logits, labels, indices)
        ctx.names = tuple(names)
        ctx.set_materialize_grads(False)
        return tuple(values.values())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Differentiate the values that have a gradient, computed again piece by piece."""
        named = zip(ctx.names, grad_outputs, strict=True)
        grads_of = {name: grad for name, grad in named if grad is not None}
        logits = ctx.saved_tensors[0]
        by_logits = torch.empty_like(logits)
        for index, z, labels, indices in _pieces(*ctx.saved_tensors):
            with torch.enable_grad():
                leaf = z.detach().requires_grad_()
                values = [RECOMPUTE[name](leaf, labels, indices) for name in grads_of]
            grads = [g[index].view_as(v) for g, v in zip(grads_of.values(), values, strict=True)]
            (by_logits[index],) = torch.autograd.grad(values, leaf, grads)
        return by_logits, None, None, None, None


def _pieces(
    logits: Tensor, labels: Tensor, indices: Tensor | None
) -> Iterator[tuple[TokenIndex, Tensor, Tensor, Tensor | None]]:
    """Cut logits, labels and indices into pieces, which keep their dimensions, with their index."""
    for index in _token_indices(logits):
        chosen = None if indices is None else _as_rows(indices[index], 3)
        yield index, _as_rows(logits[index], 3), _as_rows(labels[index], 2), chosen


def _token_indices(logits: Tensor) -> Iterator[TokenIndex]:
    """Index all tokens, or consecutive ones of a row that fit into the cache, but two at least.

    A single token's sum would be taken in another order.
    """
    rows, tokens, width = logits.shape
    limit = _GPU_BYTES if logits.is_cuda else CACHE_BYTES
    if logits.nbytes <= limit:
        yield (...,)
        return
    size = max(2, limit // (width * logits.itemsize))
    count = max(1, tokens // size)
    ends = [tokens * number // count for number in range(count + 1)]
    yield from ((row, slice(*ends[n : n + 2])) for row in range(rows) for n in range(count))


def _as_rows(tensor: Tensor, dimensions: int) -> Tensor:
    """Give a piece of one row the dimension of the rows."""
    return tensor if tensor.dim() == dimensions else tensor.unsqueeze(0)
