"""The same loss as `sdpo.loss.self_distillation`, from hidden states, without holding the logits.

    hidden ─ head ─► logits of a few tokens ─► their losses ─► d loss / d logits ─ head ─► gradients

Tokens that the masks exclude are left out; the others are taken in chunks, each from hidden states
to gradients before the next begins. A token's loss depends on its logits z only through the K
entries of the support, the response token and the normalizer log Σ exp z, so that

    d loss / d z  =  (d loss / d normalizer) · softmax(z)  +  d loss / d entries, at their places

where the two derivatives on the right are autograd's through the stages of
`sdpo.loss.self_distillation`. Over the full vocabulary the whole derivative is autograd's, in
smaller chunks.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sdpo.fused.chunks import Chunk, Job
from sdpo.fused.lm_head import (
    HeadGradients,
    Projection,
    computing_dtype,
    finished,
    flat,
    logits_of,
    parts_of,
    product,
    slope,
    vocabulary,
)
from sdpo.fused.token_log_probs import entries_of
from sdpo.fused.vocabulary_scan import (
    exponentials,
    group_maxima,
    has_kernels,
    likeliest,
    spread,
    survey,
)
from sdpo.loss.argument_shapes import check_loss_arguments
from sdpo.loss.log_softmax import Softmax
from sdpo.loss.self_distillation import Trace, token_losses, token_losses_on
from sdpo.loss.support import Support
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
            a CPU H more at first, in the memory of the head's gradient, if that is wanted.
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
    dtype = computing_dtype(student.hidden, student.head.weight)
    job = Job(
        student=flat(student),
        teacher=flat(teacher),
        live=None if live is None else flat(live),
        responses=responses.flatten(),
        old_log_probs=None if old_log_probs is None else old_log_probs.flatten(),
        weights=None if rollout_is_weights is None else rollout_is_weights.flatten(),
        loss_mask=loss_mask,
        config=config,
        dtype=dtype,
        chunk_tokens=chunk_tokens,
        traces=None if trace is None else [],
        differentiable=torch.is_grad_enabled(),
    )
    weight, bias = student.head.weight, student.head.bias
    loss: Any = FusedLoss.apply(student.hidden.flatten(0, -2), weight, bias, job)
    if trace is not None:
        trace |= job.whole_trace() | {"loss_mask": loss_mask, "aggregate": loss.detach()}
    return loss


class FusedLoss(torch.autograd.Function):
    """The loss, with all gradients computed on the way forward."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, job: Job) -> Tensor:
        """Chunk by chunk: the tokens' losses, and what they add to the gradients."""
        wanted = [job.differentiable and needed for needed in ctx.needs_input_grad[:3]]
        memory = job.memory() if wanted[1] else None
        by_hidden, by_bias = (
            torch.zeros_like(tensor, dtype=job.dtype) if tensor is not None and needed else None
            for tensor, needed in ((hidden, wanted[0]), (bias, wanted[2]))
        )
        gradients = HeadGradients(by_hidden, memory and memory.gradient, by_bias)
        per_token_loss = torch.zeros(job.loss_mask.numel(), dtype=job.dtype, device=hidden.device)
        shares = job.shares()
        with torch.autocast(hidden.device.type, enabled=False):
            for chunk in job.chunks(memory):
                losses = losses_of(job, chunk, shares[chunk.places], gradients)
                per_token_loss[chunk.places] = losses
        if memory is not None:
            memory.give_back()
        ctx.gradients = gradients
        ctx.dtypes = [None if t is None else t.dtype for t in (hidden, weight, bias)]
        return job.aggregate(per_token_loss.view(job.loss_mask.shape))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The gradients times the loss's own."""
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


def losses_of(job: Job, chunk: Chunk, shares: Tensor, gradients: HeadGradients) -> Tensor:
    """Losses `(N,)` of a chunk's tokens; adds their gradients if any are wanted."""
    trace: Trace = {}
    wanted = any(tensor is not None for tensor in gradients)
    losses, by_logits, scale = (over_vocabulary if job.whole else over_support)(
        job, chunk, shares if wanted else None, trace
    )
    if by_logits is not None:
        student = at(job.student, chunk.places)
        gradients.add(student, chunk.places, by_logits, scale, chunk.room)
    if job.traces is not None:
        job.traces.append({name: value.detach() for name, value in trace.items()})
    return losses


def over_support(
    job: Job, chunk: Chunk, shares: Tensor | None, trace: Trace
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Losses `(N,)`, and their sum's derivative by `hidden · weightᵀ + bias` `(N, V)`.

    `shares` are the losses' weights in that sum; None leaves the derivative out. The rows of the
    derivative are still to be multiplied by the last result `(N, 1)`, if that is not None.
    """
    config, head, temperature = job.config, job.student.head, job.config.temperature
    logits, maxima, normalizer = whole_logits(job, chunk)
    indices = job.responses[chunk.places].unsqueeze(-1)
    if config.full_logit_distillation:
        count = min(config.distillation_topk or 0, logits.shape[-1])
        indices = torch.cat([indices, likeliest(logits, maxima, count)], dim=-1)
    largest = maxima.amax(-1, keepdim=True)
    del maxima  # of the size of a block
    teacher = teacher_log_probs(job, chunk, indices)
    entries, factors = logits.gather(-1, indices), None
    if normalizer is None:
        normalizer, factors = exponentials(logits, largest, head, temperature)
    with torch.enable_grad():
        leaves = entries.requires_grad_(), normalizer.requires_grad_()
        student = leaves[0] - leaves[1]
        both = Support(indices[:, 1:], student[:, 1:], teacher[:, 1:])
        losses = token_losses_on(
            student[:, 0],
            teacher[:, 0],
            both if config.full_logit_distillation else None,
            **job.settings(chunk.places, trace, config),
        )
    if shares is None:
        return losses.detach(), None, None
    by_entries, by_normalizer = torch.autograd.grad(losses, leaves, shares)
    found = normalizer.detach(), factors, by_normalizer
    at_entries = indices, entries.detach(), by_entries
    return losses.detach(), *spread(logits, *found, *at_entries, head, temperature)


def over_vocabulary(
    job: Job, chunk: Chunk, shares: Tensor | None, trace: Trace
) -> tuple[Tensor, Tensor | None, None]:
    """As `over_support`, where every entry of the vocabulary is compared."""
    config, head = job.config, job.student.head
    logits, *_ = whole_logits(job, chunk)
    parts = [logits for _, logits in teacher_logits(job, chunk)]
    settings = job.settings(chunk.places, trace, replace(config, temperature=1.0))
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        sides = Softmax(leaf), Softmax(torch.cat(parts, -1))
        losses = token_losses(*sides, job.responses[chunk.places], **settings)
    for name in [name for name in trace if name.startswith("support.")]:
        del trace[name]
    if shares is None:
        return losses.detach(), None, None
    (by_logits,) = torch.autograd.grad(losses, leaf, shares)
    return losses.detach(), by_logits * slope(leaf.detach(), head, config.temperature), None


def whole_logits(job: Job, chunk: Chunk) -> tuple[Tensor, Tensor, Tensor | None]:
    """The student's logits `(N, V)` over temperature, and their `group_maxima`.

    Where there are kernels, the normalizers `(N, 1)` too, which they find in the same pass.
    """
    student, temperature = at(job.student, chunk.places), job.config.temperature
    logits = chunk.logits
    if has_kernels(logits):
        logits_of(student, slice(None), temperature, logits)
        normalizers, maxima = survey(logits)
        return logits, maxima, normalizers
    hidden, head = student
    if chunk.room is not None:  # so many rows are multiplied faster at once than in blocks
        for part in parts_of(head.weight, logits, at_once=True):
            product(hidden, head.weight[part].T, out=logits[:, part])
    maxima = []
    for part in vocabulary(student):
        # while the block, which holds whole groups, is in the cache
        block = logits[:, part]
        if chunk.room is None:
            product(hidden, head.weight[part].T, out=block)
        maxima.append(group_maxima(finished(block, head, part, temperature)))
    return logits, torch.cat(maxima, -1), None


def teacher_log_probs(job: Job, chunk: Chunk, indices: Tensor) -> Tensor:
    """The teacher's log-probs of some entries `(N, K)`, a block of its logits at a time."""
    width = len(job.teacher.head.weight)
    return entries_of(partial(teacher_logits, job, chunk), indices, width, job.dtype)


def teacher_logits(job: Job, chunk: Chunk) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of the teacher's logits over temperature, in the dtype of the computation.

    Where the chunk has room for a block, the next takes its place.
    """
    temperature, mix = job.config.temperature, job.config.teacher_update_rate
    own = at(job.teacher, chunk.places)
    live = None if job.live is None else at(job.live, chunk.places)
    for part in vocabulary(own):
        logits = logits_of(own, part, temperature, chunk.block(part)).to(job.dtype)
        if live is not None:
            theirs = logits_of(live, part, temperature).to(job.dtype)
            logits = trust_region_logits(logits, theirs, mix)
        yield part, logits


def at(side: Projection, places: Tensor) -> Projection:
    """The hidden states at some places."""
    return side._replace(hidden=side.hidden[places])
