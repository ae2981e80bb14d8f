"""The loss of `sdpo.loss.self_distillation` from hidden states, without holding the logits.

    hidden ─ head ─► logits of a chunk ─► token losses ─► d loss / d logits ─ head ─► gradients

Tokens that the masks exclude are left out. The others are taken in chunks, each of which goes all
the way from hidden states to gradients before the next begins:

    for each chunk of N tokens                                       memory
      student logits   block by block: normalizers, group maxima     N × V, the chunk's logits
      top-k            searched in the groups with largest maxima    a few MiB
      teacher logits   block by block: K entries, normalizers        one block
      token losses     the stages of `sdpo.loss`, with autograd      N × K
      d loss / d z     written over the student's logits             the chunk's logits again
      gradients        added to the hidden states' and the head's    sums in float32 or float64

On a CPU the first chunk's logits lie in the buffer of the head's gradient, which is written last,
over logits that have been read (`gradient_buffer`):

    chunk         logits lie in
    1             columns of the gradient's buffer: H tokens, and those that fit into its tail
    2, 3, …       the tail of the buffer, or 96 MiB of their own

A token's loss depends on its logits z only through the K entries of the support, the response token
and the normalizer log Σ exp z, so that

    d loss / d z  =  (d loss / d normalizer) · softmax(z)  +  d loss / d entries, at their indices

where autograd takes the two derivatives on the right through the stages. If the whole vocabulary is
compared, the whole derivative is autograd's, in smaller chunks.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sdpo.fused.chunks import Chunk, LossInputs, Trace
from sdpo.fused.lm_head import (
    HeadGradients,
    Projection,
    computing_dtype,
    detached_rows,
    logit_slope,
    logits_of,
    vocabulary_blocks,
)
from sdpo.fused.token_log_probs import log_probs_at
from sdpo.fused.vocabulary_scan import has_kernels, logit_gradient, scan_blocks, top_indices
from sdpo.loss.argument_shapes import check_loss_arguments
from sdpo.loss.log_softmax import normalized
from sdpo.loss.self_distillation import stages_from_log_probs
from sdpo.loss.support import Support, log_probs, support
from sdpo.settings.config import SDPOConfig
from sdpo.update.ema_teacher import trust_region_logits


def fused_self_distillation_loss(
    student: Projection,
    teacher: Projection,
    responses: Tensor,
    response_mask: Tensor,
    *,
    live: Projection | None = None,
    old_log_probs: Tensor | None = None,
    self_distillation_mask: Tensor | None = None,
    rollout_is_weights: Tensor | None = None,
    config: SDPOConfig,
    chunk_tokens: int | None = None,
    trace: Trace | None = None,
) -> Tensor:
    """The loss of one micro-batch, as `sdpo.loss.self_distillation.self_distillation_loss`.

    Args:
        student: hidden states `(B, T, H)` and head; row `t` predicts response token `t`. Gradients
            go to the hidden states, weight and bias that require them.
        teacher: the same of the teacher, `(B, T, H')`; no gradient.
        responses: `(B, T)` int64 token ids.
        response_mask: `(B, T)`, 1 where a response token counts.
        live: the student on the teacher's inputs, whose logits are mixed into the teacher's by
            `config.teacher_update_rate` (trust region); no gradient.
        old_log_probs: `(B, T)` under the policy before the update; needed if `config.is_clip` is.
        self_distillation_mask: `(B,)`, 1 for rows that have a teacher prompt; None for all rows.
        rollout_is_weights: `(B, T)`, or None.
        config: settings under verl's names.
        chunk_tokens: tokens whose logits are held at once. None for as many as fit in 96 MiB; on
            a CPU the first chunk has H more, in the buffer of the head's gradient, if that is
            wanted.
        trace: receives the stages' values without gradient, zeros where the masks exclude; without
            the supports if they are the whole vocabulary.

    Returns:
        A scalar, in nats: float64 if the student's hidden states or weights are, else float32. It
        can go backward once.

    Raises:
        ValueError: `is_clip` is set and `old_log_probs` missing, `chunk_tokens` is below 1, or a
            shape or dtype is another one.

    Numerics: everything after the hidden states is float32, or float64. Bit-stable for the same
    `chunk_tokens` and number of threads.
    """
    if chunk_tokens is not None and chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be 1 or more, not {chunk_tokens}")
    optional = old_log_probs, self_distillation_mask, rollout_is_weights
    check_loss_arguments(student.hidden.shape[:2], responses, response_mask, *optional)
    loss_mask = response_mask
    if self_distillation_mask is not None:
        loss_mask = response_mask * self_distillation_mask.unsqueeze(-1)
    inputs = LossInputs(
        student=detached_rows(student),
        teacher=detached_rows(teacher),
        live=None if live is None else detached_rows(live),
        responses=responses.flatten(),
        old_log_probs=None if old_log_probs is None else old_log_probs.flatten(),
        rollout_is_weights=None if rollout_is_weights is None else rollout_is_weights.flatten(),
        loss_mask=loss_mask,
        config=config,
        dtype=computing_dtype(student.hidden, student.head.weight),
        chunk_tokens=chunk_tokens,
        traces=None if trace is None else [],
        needs_gradient=torch.is_grad_enabled(),
    )
    weight, bias = student.head.weight, student.head.bias
    loss: Any = FusedLoss.apply(student.hidden.flatten(0, -2), weight, bias, inputs)
    if trace is not None:
        trace |= inputs.joined_traces() | {"loss_mask": loss_mask, "aggregate": loss.detach()}
    return loss


class FusedLoss(torch.autograd.Function):
    """The loss, whose gradients are computed during the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, inputs: LossInputs
    ) -> Tensor:
        """Compute the tokens' losses chunk by chunk, and add up their gradients."""
        wanted = [inputs.needs_gradient and needed for needed in ctx.needs_input_grad[:3]]
        buffer = inputs.gradient_buffer() if wanted[1] else None
        by_hidden, by_bias = (
            torch.zeros_like(tensor, dtype=inputs.dtype) if tensor is not None and needed else None
            for tensor, needed in ((hidden, wanted[0]), (bias, wanted[2]))
        )
        gradients = HeadGradients(by_hidden, buffer and buffer.gradient, by_bias)
        count, loss_weights = inputs.loss_mask.numel(), inputs.loss_weights()
        per_token_loss = torch.zeros(count, dtype=inputs.dtype, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            for chunk in inputs.chunks(buffer):
                losses = _chunk_losses(inputs, chunk, loss_weights[chunk.positions], gradients)
                per_token_loss[chunk.positions] = losses
        if buffer is not None:
            buffer.release_tail()
        ctx.gradients = gradients
        ctx.dtypes = [None if t is None else t.dtype for t in (hidden, weight, bias)]
        return inputs.aggregate(per_token_loss.view(inputs.loss_mask.shape))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Multiply the gradients by the loss's own."""
        if ctx.gradients is None:
            raise RuntimeError(
                "the fused loss can go backward once; compute it again, or use "
                "sdpo.loss.self_distillation.self_distillation_loss"
            )
        (grad,) = grad_outputs
        gradients, ctx.gradients = ctx.gradients, None
        if grad != 1:
            for tensor in gradients:
                if tensor is not None:
                    tensor.mul_(grad)
        cast = (None if g is None else g.to(d) for g, d in zip(gradients, ctx.dtypes, strict=True))
        return *cast, None


def _chunk_losses(
    inputs: LossInputs, chunk: Chunk, loss_weights: Tensor, gradients: HeadGradients
) -> Tensor:
    """Losses `(N,)` of a chunk's tokens; adds their gradients if any are wanted."""
    trace: Trace = {}
    wanted = any(tensor is not None for tensor in gradients)
    compare = _over_vocabulary if inputs.compares_full_vocabulary else _over_support
    losses, by_logits = compare(inputs, chunk, loss_weights if wanted else None, trace)
    if by_logits is not None:
        student = _rows_at(inputs.student, chunk.positions)
        gradients.add(student, chunk.positions, by_logits, chunk.scratch)
    if inputs.traces is not None:
        inputs.traces.append({name: value.detach() for name, value in trace.items()})
    return losses


def _over_support(
    inputs: LossInputs, chunk: Chunk, loss_weights: Tensor | None, trace: Trace
) -> tuple[Tensor, Tensor | None]:
    """Losses `(N,)`, and their weighted sum's derivative by `hidden · weightᵀ + bias` `(N, V)`.

    Without `loss_weights` `(N,)` there is no derivative.
    """
    config, head, logits = inputs.config, inputs.student.head, chunk.logits
    widths = [part.stop - part.start for part in _student_parts(inputs, chunk)]
    normalizers, maxima = scan_blocks(_student_blocks(inputs, chunk), widths, like=logits)
    indices = inputs.responses[chunk.positions].unsqueeze(-1)
    if config.full_logit_distillation:
        count = min(config.distillation_topk or 0, logits.shape[-1])
        indices = torch.cat([indices, top_indices(logits, maxima, count)], dim=-1)
    del maxima  # of the size of a block
    # block by block as the teacher's, so that equal logits round alike
    normalizer = normalizers.logsumexp(-1, keepdim=True)
    teacher = log_probs_at(indices, _teacher_blocks(inputs, chunk))
    entries = logits.gather(-1, indices)
    with torch.enable_grad():
        leaves = entries.requires_grad_(), normalizer.requires_grad_()
        student = leaves[0] - leaves[1]
        compared = Support(indices[:, 1:], student[:, 1:], teacher[:, 1:])
        stages = stages_from_log_probs(
            student[:, 0],
            teacher[:, 0],
            compared if config.full_logit_distillation else None,
            **inputs.stage_arguments(chunk.positions, config),
        )
    trace |= stages.named()
    losses = stages.importance
    if loss_weights is None:
        return losses.detach(), None
    by_entries, by_normalizer = torch.autograd.grad(losses, leaves, loss_weights)
    of_entries = indices, entries.detach(), by_entries
    return losses.detach(), logit_gradient(
        logits, normalizer.detach(), by_normalizer, *of_entries, head, config.temperature
    )


def _over_vocabulary(
    inputs: LossInputs, chunk: Chunk, loss_weights: Tensor | None, trace: Trace
) -> tuple[Tensor, Tensor | None]:
    """As `_over_support`, where every entry of the vocabulary is compared."""
    config, head = inputs.config, inputs.student.head
    for _ in _student_blocks(inputs, chunk):
        pass
    teacher_logits = torch.cat([block for _, block in _teacher_blocks(inputs, chunk)], -1)
    # the logits are divided by the temperature already
    arguments = inputs.stage_arguments(chunk.positions, replace(config, temperature=1.0))
    with torch.enable_grad():
        leaf = chunk.logits.detach().requires_grad_()
        student, teacher = normalized(leaf), normalized(teacher_logits)
        responses = inputs.responses[chunk.positions]
        stages = stages_from_log_probs(
            log_probs(student, responses),
            log_probs(teacher, responses),
            support(student, teacher, distillation_topk=config.distillation_topk),
            **arguments,
        )
    trace |= stages._replace(support=None).named()
    losses = stages.importance
    if loss_weights is None:
        return losses.detach(), None
    (by_logits,) = torch.autograd.grad(losses, leaf, loss_weights)
    return losses.detach(), by_logits * logit_slope(leaf.detach(), head, config.temperature)


def _student_parts(inputs: LossInputs, chunk: Chunk) -> list[slice]:
    """Divide the vocabulary into blocks; the kernels take it at once."""
    at_once = slice(0, chunk.logits.shape[-1])
    return [at_once] if has_kernels(chunk.logits) else [*vocabulary_blocks(inputs.student)]


def _student_blocks(inputs: LossInputs, chunk: Chunk) -> Iterator[Tensor]:
    """Write the student's logits over temperature, and give each block while it is in the cache."""
    student = _rows_at(inputs.student, chunk.positions)
    for part in _student_parts(inputs, chunk):
        yield logits_of(student, part, inputs.config.temperature, chunk.logits[:, part])


def _teacher_blocks(inputs: LossInputs, chunk: Chunk) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of the teacher's logits over temperature, in the dtype of the computation.

    Where the chunk has scratch memory, the next block overwrites it.
    """
    temperature, mix = inputs.config.temperature, inputs.config.teacher_update_rate
    teacher = _rows_at(inputs.teacher, chunk.positions)
    live = None if inputs.live is None else _rows_at(inputs.live, chunk.positions)
    for part in vocabulary_blocks(teacher):
        logits = logits_of(teacher, part, temperature, chunk.scratch_for(part)).to(inputs.dtype)
        if live is not None:
            live_logits = logits_of(live, part, temperature).to(inputs.dtype)
            logits = trust_region_logits(logits, live_logits, mix)
        yield part, logits


def _rows_at(side: Projection, positions: Tensor) -> Projection:
    """The hidden states at some positions."""
    return side._replace(hidden=side.hidden[positions])
