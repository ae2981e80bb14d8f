"""The inputs of one fused loss, and its tokens in chunks."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor

from sdpo.fused.gradient_buffer import CAN_RELEASE_PAGES, GradientBuffer
from sdpo.fused.lm_head import Projection, blocks
from sdpo.loss.aggregate import aggregate
from sdpo.settings.config import SDPOConfig

CHUNK_BYTES = 96 * 2**20
GPU_CHUNK_BYTES = 256 * 2**20
"""A first guess that has not been run on a GPU."""
FULL_VOCABULARY_COPIES = 16
"""Tensors as large as the logits that autograd holds if the whole vocabulary is compared."""


class Chunk(NamedTuple):
    """Some of the tokens: their `positions` `(N,)` among all, and where their `logits` go `(N, V)`.

    `scratch` has the size of a block of logits or of the head's gradient. It is there if the logits
    are columns of the gradient's buffer, because then a block may need another place for a while.
    """

    positions: Tensor
    logits: Tensor
    scratch: Tensor | None = None

    def scratch_for(self, part: slice) -> Tensor | None:
        """The scratch memory as logits of a part of the vocabulary, `(N, width of the part)`."""
        if self.scratch is None:
            return None
        shape = part.stop - part.start, len(self.positions)
        return self.scratch.view(-1)[: math.prod(shape)].view(shape).T


Trace = dict[str, Tensor]


class StageArguments(TypedDict):
    """What the stages after the logits need beside log-probs."""

    old_log_probs: Tensor | None
    rollout_is_weights: Tensor | None
    config: SDPOConfig


def chunk_in_buffer(positions: Tensor, logit_columns: Tensor) -> Chunk:
    """A chunk whose logits are columns of the gradient's buffer, one for each token."""
    part = next(blocks(len(logit_columns), logit_columns.device))
    logits = logit_columns[:, : len(positions)].T
    return Chunk(positions, logits, torch.empty_like(logit_columns[part]))


@dataclass
class LossInputs:
    """The arguments of `fused_self_distillation_loss`, with `(B, T)` flattened to `(B·T,)`.

    Only `loss_mask`, the product of the masks, keeps its shape `(B, T)`.
    """

    student: Projection
    teacher: Projection
    live: Projection | None
    responses: Tensor
    old_log_probs: Tensor | None
    rollout_is_weights: Tensor | None
    loss_mask: Tensor
    config: SDPOConfig
    dtype: torch.dtype
    chunk_tokens: int | None
    traces: list[Trace] | None
    needs_gradient: bool
    positions: Tensor = field(init=False)
    """Positions `(N,)` of the tokens that count."""

    def __post_init__(self) -> None:
        self.positions = self.loss_mask.flatten().nonzero().squeeze(-1)

    @property
    def compares_full_vocabulary(self) -> bool:
        """Whether every entry of the vocabulary is compared."""
        return self.config.full_logit_distillation and self.config.distillation_topk is None

    @property
    def tokens_per_chunk(self) -> int:
        """The tokens for which everything of the vocabulary's width fits into `CHUNK_BYTES`."""
        copies = FULL_VOCABULARY_COPIES if self.compares_full_vocabulary else 1
        size = GPU_CHUNK_BYTES if self.positions.is_cuda else CHUNK_BYTES
        width = len(self.student.head.weight)
        return max(1, size // (width * self.dtype.itemsize * copies))

    @property
    def buffer_holds_logits(self) -> bool:
        """Whether the buffer of the head's gradient holds the first tokens' logits."""
        columns = min(len(self.positions), self.student.head.weight.shape[1])
        allowed = self.chunk_tokens is None and not self.compares_full_vocabulary
        return allowed and self.positions.device.type == "cpu" and columns > self.tokens_per_chunk

    def gradient_buffer(self) -> GradientBuffer:
        """The buffer of the head's gradient, with a tail of up to a chunk's tokens if it can."""
        shape, device = self.student.head.weight.shape, self.positions.device
        extra = 0
        if self.buffer_holds_logits and CAN_RELEASE_PAGES:
            extra = max(0, min(len(self.positions) - shape[1], self.tokens_per_chunk))
        return GradientBuffer(shape, shape[1] + extra, self.dtype, device)

    def chunks(self, buffer: GradientBuffer | None) -> Iterator[Chunk]:
        """The tokens in chunks, the first in the buffer if `buffer_holds_logits`.

        Args:
            buffer: uninitialised; its gradient is set to zero unless the first chunk lies there.
                None if the head's gradient is not wanted.
        """
        positions, width = self.positions, len(self.student.head.weight)
        tail_of_buffer = torch.empty(0, dtype=self.dtype, device=positions.device)
        if buffer is not None and self.buffer_holds_logits:
            first, positions = positions.tensor_split([buffer.logit_columns.shape[1]])
            yield chunk_in_buffer(first, buffer.logit_columns)
            tail_of_buffer = buffer.tail
        elif buffer is not None:
            buffer.gradient.zero_()
        if not len(positions):
            return
        size = self.chunk_tokens or self.tokens_per_chunk
        parts = positions.tensor_split(-(-len(positions) // size))
        needed = len(parts[0]) * width
        fits = len(tail_of_buffer) >= needed
        memory = tail_of_buffer if fits else tail_of_buffer.new_empty(needed)
        for part in parts:
            yield Chunk(part, memory[: len(part) * width].view(-1, width))

    def loss_weights(self) -> Tensor:
        """The derivative of `aggregate` by the loss of each token, `(B·T,)`."""
        with torch.enable_grad():
            leaf = torch.zeros(self.loss_mask.shape, dtype=self.dtype, device=self.positions.device)
            loss = self.aggregate(leaf.requires_grad_())
        return torch.autograd.grad(loss, leaf)[0].flatten()

    def aggregate(self, per_token_loss: Tensor) -> Tensor:
        """The scalar loss from the tokens' losses `(B, T)`."""
        mode = self.config.loss_agg_mode
        return aggregate(per_token_loss, self.loss_mask, loss_agg_mode=mode)

    def stage_arguments(self, positions: Tensor, config: SDPOConfig) -> StageArguments:
        """The arguments of the stages after the logits, at some positions."""
        old, weights = (
            None if tensor is None else tensor[positions].to(self.dtype)
            for tensor in (self.old_log_probs, self.rollout_is_weights)
        )
        return StageArguments(old_log_probs=old, rollout_is_weights=weights, config=config)

    def joined_traces(self) -> Trace:
        """The chunks' stage values at their positions, `(B, T, …)`; zeros elsewhere."""
        joined: Trace = {}
        for name in self.traces[0] if self.traces else ():
            values = torch.cat([trace[name] for trace in self.traces or ()]).detach()
            zeros = values.new_zeros(self.loss_mask.numel(), *values.shape[1:])
            flat = zeros.index_copy_(0, self.positions, values)
            joined[name] = flat.unflatten(0, self.loss_mask.shape)
        return joined
