"""What one fused loss was given, and its tokens in chunks."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdpo.fused.gradient_buffer import CAN_GIVE_BACK, GradientMemory
from sdpo.fused.lm_head import Projection, blocks
from sdpo.loss.aggregate import aggregate
from sdpo.loss.self_distillation import Trace
from sdpo.settings.config import SDPOConfig

CHUNK_BYTES = 96 * 2**20
GPU_CHUNK_BYTES = 256 * 2**20
FULL_VOCABULARY_BUFFERS = 16


class Chunk(NamedTuple):
    """Some of the tokens: their places `(N,)`, and where their logits go, `(N, V)`.

    `room` is for a block of logits or of the head's gradient. It is there if the logits lie in the
    memory of that gradient, and by columns then.
    """

    places: Tensor
    logits: Tensor
    room: Tensor | None = None

    def block(self, part: slice) -> Tensor | None:
        """Room for the logits of a part of the vocabulary, `(N, width of the part)`."""
        if self.room is None:
            return None
        shape = part.stop - part.start, len(self.places)
        return self.room.view(-1)[: math.prod(shape)].view(shape).T


def in_gradient(places: Tensor, columns: Tensor) -> Chunk:
    """A chunk whose logits take a column each of the memory of the head's gradient.

    All of them are multiplied at once, almost without memory of their own.
    """
    part = next(blocks(len(columns), columns.device))
    return Chunk(places, columns[:, : len(places)].T, torch.empty_like(columns[part]))


def over_all(config: SDPOConfig) -> bool:
    """Whether all of the vocabulary is compared."""
    return config.full_logit_distillation and config.distillation_topk is None


def tokens_that_fit(
    width: int, dtype: torch.dtype, config: SDPOConfig, device: torch.device
) -> int:
    """Tokens of a chunk: `CHUNK_BYTES` for everything of the size of the vocabulary."""
    buffers = FULL_VOCABULARY_BUFFERS if over_all(config) else 1
    size = GPU_CHUNK_BYTES if device.type == "cuda" else CHUNK_BYTES
    return max(1, size // (width * dtype.itemsize * buffers))


@dataclass
class Job:
    """One loss: what `fused_self_distillation_loss` was given, places `(B, T)` in one row."""

    student: Projection
    teacher: Projection
    live: Projection | None
    responses: Tensor
    old_log_probs: Tensor | None
    weights: Tensor | None
    loss_mask: Tensor
    config: SDPOConfig
    dtype: torch.dtype
    chunk_tokens: int | None
    traces: list[Trace] | None
    differentiable: bool
    tokens: Tensor = field(init=False)
    """Places that count."""

    def __post_init__(self) -> None:
        self.tokens = self.loss_mask.flatten().nonzero().squeeze(-1)

    @property
    def whole(self) -> bool:
        """`over_all` of the settings."""
        return over_all(self.config)

    @property
    def fit(self) -> int:
        """`tokens_that_fit` of the settings."""
        width = len(self.student.head.weight)
        return tokens_that_fit(width, self.dtype, self.config, self.tokens.device)

    @property
    def lends(self) -> bool:
        """Whether the memory of the head's gradient holds the logits of the first tokens."""
        many = min(len(self.tokens), self.student.head.weight.shape[1]) > self.fit
        on_cpu = self.tokens.device.type == "cpu"
        return many and on_cpu and self.chunk_tokens is None and not self.whole

    def memory(self) -> GradientMemory:
        """For the head's gradient; where it lends, for up to a chunk's tokens more than columns."""
        shape, device = self.student.head.weight.shape, self.tokens.device
        more = min(len(self.tokens) - shape[1], self.fit) if self.lends and CAN_GIVE_BACK else 0
        return GradientMemory(shape, shape[1] + max(more, 0), self.dtype, device)

    def chunks(self, memory: GradientMemory | None) -> Iterator[Chunk]:
        """The tokens in chunks; the first in the memory of the head's gradient, if it lends that.

        Args:
            memory: of any value; the gradient is set to zeros unless the first chunk lies there.
                None if nobody wants that gradient.
        """
        tokens, width = self.tokens, len(self.student.head.weight)
        spare = torch.empty(0, dtype=self.dtype, device=tokens.device)
        if memory is not None and self.lends:
            first, tokens = tokens.tensor_split([memory.columns.shape[1]])
            yield in_gradient(first, memory.columns)
            spare = memory.beyond
        elif memory is not None:
            memory.gradient.zero_()
        size = self.chunk_tokens or self.fit
        parts = tokens.tensor_split(-(-len(tokens) // size)) if len(tokens) else ()
        room = len(parts[0]) * width if parts else 0
        buffer = spare if len(spare) >= room else spare.new_empty(room)
        for places in parts:
            yield Chunk(places, buffer[: len(places) * width].view(-1, width))

    def shares(self) -> Tensor:
        """How much each place's loss adds to the whole: the derivative of `aggregate`, `(B·T,)`."""
        with torch.enable_grad():
            leaf = torch.zeros(self.loss_mask.shape, dtype=self.dtype, device=self.tokens.device)
            loss = self.aggregate(leaf.requires_grad_())
        return torch.autograd.grad(loss, leaf)[0].flatten()

    def aggregate(self, per_token_loss: Tensor) -> Tensor:
        """One number from the losses `(B, T)`."""
        mode = self.config.loss_agg_mode
        return aggregate(per_token_loss, self.loss_mask, loss_agg_mode=mode)

    def settings(self, places: Tensor, trace: Trace, config: SDPOConfig) -> dict[str, Any]:
        """The arguments of the stages after the logits, at some places."""

        def chosen(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[places].to(self.dtype)

        return {
            "old_log_probs": chosen(self.old_log_probs),
            "rollout_is_weights": chosen(self.weights),
            "config": config,
            "trace": trace,
        }

    def whole_trace(self) -> Trace:
        """The chunks' values at their places, `(B, T, …)`."""
        whole: Trace = {}
        for name in self.traces[0] if self.traces else ():
            values = torch.cat([trace[name] for trace in self.traces or ()]).detach()
            empty = values.new_zeros(self.loss_mask.numel(), *values.shape[1:])
            whole[name] = empty.index_copy_(0, self.tokens, values).unflatten(
                0, self.loss_mask.shape
            )
        return whole
