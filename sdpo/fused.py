"""The same loss as `sdpo.loss`, from hidden states, without holding the logits.

    hidden ─ head ─► logits of a few tokens ─► their losses ─► d loss / d logits ─ head ─► gradients

Tokens that the masks exclude are left out; the others are taken in chunks, each from hidden states
to gradients before the next begins. A token's loss depends on its logits z only through the K
entries of the support, the response token and the normalizer log Σ exp z, so that

    d loss / d z  =  (d loss / d normalizer) · softmax(z)  +  d loss / d entries, at their places

where the two derivatives on the right are autograd's through the stages of `sdpo.loss`. Over the
full vocabulary the whole derivative is autograd's, in smaller chunks.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sdpo.aggregate import aggregate
from sdpo.config import SDPOConfig
from sdpo.heads import HeadGradients, Projection, blocks, computing_dtype, logits_of, slope
from sdpo.loss import Trace, token_losses, token_losses_on
from sdpo.softmax import Softmax
from sdpo.support import Support
from sdpo.teacher import trust_region_logits
from sdpo.vocabulary import GROUP, has_kernels, likeliest, normalizers_of, spread, survey

CHUNK_BYTES = 96 * 2**20
GPU_CHUNK_BYTES = 256 * 2**20
FULL_VOCABULARY_BUFFERS = 16
TOKENS_AT_ONCE = 1024
"""Of log-probs alone, of which only blocks are held."""


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
    """The self-distillation loss of one micro-batch, as `sdpo.loss.self_distillation_loss`.

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
        chunk_tokens: tokens whose logits are held at once; None for as many as fit in 96 MiB.
        trace: receives the stages' values without gradient, zeros where the masks exclude; without
            the supports if they are the whole vocabulary.

    Returns:
        A scalar, in nats: float64 if the student's hidden states or weights are, else float32. It
        can go backward once.

    Raises:
        ValueError: `is_clip` is set and `old_log_probs` missing, or `chunk_tokens` below 1.

    Numerics: everything after the hidden states is float32, or float64. Bit-stable for the same
    `chunk_tokens` and number of threads.
    """
    if chunk_tokens is not None and chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be 1 or more, not {chunk_tokens}")
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
        size=chunk_tokens
        or tokens_that_fit(len(student.head.weight), dtype, config, student.hidden.device),
        traces=None if trace is None else [],
        differentiable=torch.is_grad_enabled(),
    )
    weight, bias = student.head.weight, student.head.bias
    loss: Any = FusedLoss.apply(student.hidden.flatten(0, -2), weight, bias, job)
    if trace is not None:
        trace |= job.whole_trace() | {"loss_mask": loss_mask, "aggregate": loss.detach()}
    return loss


def flat(side: Projection) -> Projection:
    """Hidden states `(N, H)`, and everything without gradient.

    On a GPU a float32 head is rounded to half-precision hidden states, as autocast does.
    """
    hidden, weight = side.hidden.detach().flatten(0, -2), side.head.weight.detach()
    bias = None if side.head.bias is None else side.head.bias.detach()
    if hidden.is_cuda and hidden.dtype.itemsize < weight.dtype.itemsize:
        weight = weight.to(hidden.dtype)
    return Projection(hidden, side.head._replace(weight=weight, bias=bias))


def tokens_that_fit(
    width: int, dtype: torch.dtype, config: SDPOConfig, device: torch.device
) -> int:
    """Tokens of a chunk: `CHUNK_BYTES` for everything of the size of the vocabulary."""
    buffers = 1
    if config.full_logit_distillation and config.distillation_topk is None:
        buffers = FULL_VOCABULARY_BUFFERS
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
    size: int
    traces: list[Trace] | None
    differentiable: bool
    tokens: Tensor = field(init=False)
    """Places that count."""
    buffer: Tensor = field(init=False)
    """`(N, V)` for the logits of a chunk."""

    def __post_init__(self) -> None:
        self.tokens = self.loss_mask.flatten().nonzero().squeeze(-1)
        longest = max((len(places) for places in self.chunks()), default=0)
        shape = (longest, len(self.student.head.weight))
        self.buffer = torch.empty(shape, dtype=self.dtype, device=self.tokens.device)

    def chunks(self) -> Iterator[Tensor]:
        """Places of each chunk; chunks are of nearly equal size."""
        count = -(-len(self.tokens) // self.size)
        yield from self.tokens.tensor_split(count) if count else ()

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


class FusedLoss(torch.autograd.Function):
    """The loss, with all gradients computed on the way forward."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, job: Job) -> Tensor:
        """Chunk by chunk: the tokens' losses, and what they add to the gradients."""
        needs = (job.differentiable and needed for needed in ctx.needs_input_grad)
        wanted = [
            torch.zeros_like(tensor, dtype=job.dtype) if tensor is not None and needed else None
            for tensor, needed in zip((hidden, weight, bias), needs, strict=False)
        ]
        gradients = HeadGradients(*wanted)
        per_token_loss = torch.zeros(job.loss_mask.numel(), dtype=job.dtype, device=hidden.device)
        shares = job.shares()
        with torch.autocast(hidden.device.type, enabled=False):
            for places in job.chunks():
                per_token_loss[places] = chunk(job, places, shares[places], gradients)
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
                "sdpo.loss.self_distillation_loss"
            )
        (grad,) = grad_outputs
        gradients, ctx.gradients = ctx.gradients, None
        if grad != 1:
            for tensor in gradients:
                if tensor is not None:
                    tensor.mul_(grad)
        cast = (None if g is None else g.to(d) for g, d in zip(gradients, ctx.dtypes, strict=True))
        return *cast, None


def chunk(job: Job, places: Tensor, shares: Tensor, gradients: HeadGradients) -> Tensor:
    """Losses `(N,)` of the tokens at some places; adds their gradients if any are wanted."""
    config, trace = job.config, {}
    whole = config.full_logit_distillation and config.distillation_topk is None
    wanted = any(tensor is not None for tensor in gradients)
    losses, by_logits = (over_vocabulary if whole else over_support)(
        job, places, shares if wanted else None, trace
    )
    if by_logits is not None:
        gradients.add(at(job.student, places), places, by_logits)
    if job.traces is not None:
        job.traces.append({name: value.detach() for name, value in trace.items()})
    return losses


def over_support(
    job: Job, places: Tensor, shares: Tensor | None, trace: Trace
) -> tuple[Tensor, Tensor | None]:
    """Losses `(N,)`, and their sum's derivative by `hidden · weightᵀ + bias` `(N, V)`.

    `shares` are the losses' weights in that sum; None leaves the derivative out.
    """
    config, head = job.config, job.student.head
    logits, normalizer, maxima = whole_logits(job, places)
    indices = job.responses[places].unsqueeze(-1)
    if config.full_logit_distillation:
        count = min(config.distillation_topk or 0, logits.shape[-1])
        indices = torch.cat([indices, likeliest(logits, maxima, count)], dim=-1)
    teacher = teacher_log_probs(job, places, indices)
    with torch.enable_grad():
        leaves = logits.gather(-1, indices).requires_grad_(), normalizer.requires_grad_()
        student = leaves[0] - leaves[1]
        both = Support(indices[:, 1:], student[:, 1:], teacher[:, 1:])
        losses = token_losses_on(
            student[:, 0],
            teacher[:, 0],
            both if config.full_logit_distillation else None,
            **job.settings(places, trace, config),
        )
    if shares is None:
        return losses.detach(), None
    by_entries, by_normalizer = torch.autograd.grad(losses, leaves, shares)
    normalizer, temperature = normalizer.detach(), config.temperature
    by_logits = spread(logits, normalizer, by_normalizer, indices, by_entries, head, temperature)
    return losses.detach(), by_logits


def over_vocabulary(
    job: Job, places: Tensor, shares: Tensor | None, trace: Trace
) -> tuple[Tensor, Tensor | None]:
    """As `over_support`, where every entry of the vocabulary is compared."""
    config, head = job.config, job.student.head
    logits, *_ = whole_logits(job, places)
    parts = [logits for _, logits in teacher_logits(job, places)]
    settings = job.settings(places, trace, replace(config, temperature=1.0))
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        sides = Softmax(leaf), Softmax(torch.cat(parts, -1))
        losses = token_losses(*sides, job.responses[places], **settings)
    for name in [name for name in trace if name.startswith("support.")]:
        del trace[name]
    if shares is None:
        return losses.detach(), None
    (by_logits,) = torch.autograd.grad(losses, leaf, shares)
    return losses.detach(), by_logits * slope(leaf.detach(), head, config.temperature)


def whole_logits(job: Job, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The student's logits `(N, V)` over temperature at some places, and their `survey`."""
    student, logits = at(job.student, places), job.buffer[: len(places)]
    temperature = job.config.temperature
    if has_kernels(logits):
        logits_of(student, slice(None), temperature, logits)
        return logits, *survey(logits)
    parts = [*vocabulary(student)]
    normalizers = logits.new_empty(len(places), len(parts))
    maxima = logits.new_empty(len(places), -(-logits.shape[-1] // GROUP))
    for number, part in enumerate(parts):
        # while the block, which holds whole groups, is in the cache; the survey overwrites it
        block = logits_of(student, part, temperature)
        logits[:, part] = block
        found = survey(block)
        del block
        groups = slice(part.start // GROUP, -(-part.stop // GROUP))
        normalizers[:, number : number + 1], maxima[:, groups] = found
    return logits, normalizers.logsumexp(-1, keepdim=True), maxima


def teacher_log_probs(job: Job, places: Tensor, indices: Tensor) -> Tensor:
    """The teacher's log-probs of some entries `(N, K)`, a block of its logits at a time."""
    return entries_of(teacher_logits(job, places), indices, len(job.teacher.head.weight), job.dtype)


def entries_of(
    logits_by_block: Iterable[tuple[slice, Tensor]], indices: Tensor, width: int, dtype: torch.dtype
) -> Tensor:
    """Log-probs `(N, K)` of some entries, from logits whose blocks come one after the other.

    The blocks are overwritten.
    """
    # results go to tensors made before: small ones between large ones would fragment the heap
    entries = torch.zeros(indices.shape, dtype=dtype, device=indices.device)
    normalizers = entries.new_empty(len(indices), len([*blocks(width, indices.device)]))
    for number, (part, logits) in enumerate(logits_by_block):
        inside = (indices >= part.start) & (indices < part.stop)
        near = (indices - part.start).clamp(0, logits.shape[-1] - 1)
        entries.copy_(torch.where(inside, logits.gather(-1, near), entries))
        normalizers[:, number : number + 1] = normalizers_of(logits)
        del logits
    return entries - normalizers.logsumexp(-1, keepdim=True)


@torch.no_grad()
def token_log_probs(side: Projection, responses: Tensor, temperature: float) -> Tensor:
    """Log-probs `(B, T)` of the response tokens, without holding the logits.

    Args:
        side: hidden states `(B, T, H)` and head; row `t` predicts response token `t`.
        responses: `(B, T)` int64 token ids.
        temperature: divides the logits.
    """
    whole, width = flat(side), len(side.head.weight)
    dtype, found = computing_dtype(whole.hidden, whole.head.weight), []
    rows = whole.hidden.split(TOKENS_AT_ONCE), responses.flatten().split(TOKENS_AT_ONCE)
    with torch.autocast(responses.device.type, enabled=False):
        for hidden, tokens in zip(*rows, strict=True):
            some = whole._replace(hidden=hidden)
            parts = ((part, logits_of(some, part, temperature)) for part in vocabulary(some))
            found.append(entries_of(parts, tokens.unsqueeze(-1), width, dtype))
    return torch.cat(found).view(responses.shape)


def teacher_logits(job: Job, places: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of the teacher's logits over temperature, in the dtype of the computation."""
    temperature, mix = job.config.temperature, job.config.teacher_update_rate
    own, live = at(job.teacher, places), None if job.live is None else at(job.live, places)
    for part in vocabulary(own):
        logits = logits_of(own, part, temperature).to(job.dtype)
        if live is not None:
            theirs = logits_of(live, part, temperature).to(job.dtype)
            logits = trust_region_logits(logits, theirs, mix)
        yield part, logits


def vocabulary(side: Projection) -> Iterator[slice]:
    """The blocks of a side's vocabulary."""
    return blocks(len(side.head.weight), side.hidden.device)


def at(side: Projection, places: Tensor) -> Projection:
    """The hidden states at some places."""
    return side._replace(hidden=side.hidden[places])
