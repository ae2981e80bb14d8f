"""Log-probabilities over a large vocabulary: softmax(logits / temperature), normalised once.

    log p_k = z_k - log Σ_v exp z_v            z = logits / temperature
    ∂ log p_k / ∂ z_v = [k = v] - p_v

A loss reads few entries of each token, so nothing of the size of the logits is made but their
gradient, in one pass. Passes take a few tokens at a time, whose values stay in the cache.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise, product
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor

CACHE_BYTES = 4 * 2**20
GPU_BYTES = 256 * 2**20

Piece = tuple[int | slice | EllipsisType, ...]


class NormalizedLogits:
    """The logits of one side and their normalizers log Σ exp z, which several stages share.

    Args:
        logits: `(…, V)` floating, before temperature.
        temperature: divides the logits.
        counts: `(…)` bool; elsewhere the logits count as zeros, so that NaN or infinity there reach
            neither values nor gradient. None: every place counts.
    """

    def __init__(self, logits: Tensor, temperature: float = 1.0, counts: Tensor | None = None):
        self.logits, self.temperature = logits, temperature
        self.counts = None if counts is None or bool(counts.all()) else counts.unsqueeze(-1)
        self.normalizers = self.by_piece(lambda z: z.logsumexp(-1, keepdim=True))

    @property
    def shape(self) -> torch.Size:
        """`(…, V)`."""
        return self.logits.shape

    @torch.no_grad()
    def by_piece(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply a function from `(…, V)` to `(…, K)` to z, a few places at a time."""
        parts = [function(z) for _, z in _pieces(self.logits, self.temperature, self.counts)]
        return torch.cat(parts).view(*self.logits.shape[:-1], parts[0].shape[-1])


Logits = Tensor | NormalizedLogits


def normalized(
    logits: Logits, temperature: float = 1.0, counts: Tensor | None = None
) -> NormalizedLogits:
    """Normalise logits over temperature, unless that was done before."""
    if isinstance(logits, NormalizedLogits):
        return logits
    return NormalizedLogits(logits, temperature, counts)


def log_softmax_at(logits: Logits, indices: Tensor, temperature: float = 1.0) -> Tensor:
    """Compute the log-probabilities `(…, K)` of the entries `indices` `(…, K)` alone."""
    side = normalized(logits, temperature)
    log_probs: Any = _LogProbs.apply(
        side.logits, indices, side.normalizers, side.counts, side.temperature
    )
    return log_probs


def log_softmax(logits: Logits, temperature: float = 1.0) -> Tensor:
    """Compute the log-probabilities `(…, V)` of all entries."""
    side = normalized(logits, temperature)
    return _scaled(side.logits, side.temperature, side.counts).log_softmax(-1)


def likeliest(logits: Logits, count: int) -> Tensor:
    """Find the indices `(…, K)` of the `count` largest logits, in descending order."""
    side = normalized(logits)
    return side.by_piece(lambda z: z.topk(min(count, z.shape[-1]), dim=-1).indices)


class _LogProbs(torch.autograd.Function):
    """`log_softmax_at`, and its derivative."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        indices: Tensor,
        normalizers: Tensor,
        counts: Tensor | None,
        temperature: float,
    ) -> Tensor:
        """Subtract the normalizers from the entries."""
        ctx.save_for_backward(logits, indices, normalizers, counts)
        ctx.temperature = temperature
        return _scaled(logits.gather(-1, indices), temperature, counts) - normalizers

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Compute Σ_k grad_k ([k = v] - p_v), over temperature."""
        (grad,) = grad_outputs
        logits, indices, normalizers, counts = ctx.saved_tensors
        by_logits, by_normalizers = torch.empty_like(logits), -grad.sum(-1, keepdim=True)
        for piece, z in _pieces(logits, ctx.temperature, counts):
            by_z = (z - normalizers[piece]).exp_().mul_(by_normalizers[piece])
            by_z.scatter_add_(-1, indices[piece], grad[piece])
            if ctx.temperature != 1.0:
                by_z.div_(ctx.temperature)
            if counts is not None:
                by_z.masked_fill_(~counts[piece], 0.0)
            by_logits[piece] = by_z
        return by_logits, None, None, None, None


def _scaled(logits: Tensor, temperature: float, counts: Tensor | None) -> Tensor:
    """Compute z: the logits over temperature, zeros at places that do not count."""
    logits = logits if counts is None else torch.where(counts, logits, 0.0)
    return logits if temperature == 1.0 else logits / temperature


def _pieces(
    logits: Tensor, temperature: float, counts: Tensor | None
) -> Iterator[tuple[Piece, Tensor]]:
    """Yield consecutive places whose logits `(…, V)` fit into the cache, and z there."""
    for piece in places(logits):
        yield piece, _scaled(logits[piece], temperature, None if counts is None else counts[piece])


def places(logits: Tensor) -> Iterator[Piece]:
    """Yield as many places at a time as about `CACHE_BYTES` hold, on a GPU `GPU_BYTES`.

    Never a single one of several: torch adds up a lone row in another order, by all threads.
    """
    *leading, tokens, width = logits.shape
    limit = GPU_BYTES if logits.is_cuda else CACHE_BYTES
    if logits.nbytes <= limit:
        yield (...,)
        return
    size = max(2, limit // (width * logits.itemsize))
    count = max(1, tokens // size)
    ends = [tokens * number // count for number in range(count + 1)]
    for row in product(*map(range, leading)):
        for start, end in pairwise(ends):
            yield *row, slice(start, end)
