"""The reference's self-distillation loss: log-probs, support, tail, divergence, ratio, aggregation.

A transcription of the verl fork's loss path, written from its specification and checked bit for bit
against recorded values. It keeps the order of operations, the dtypes and the quirks of the
original, also where they look wrong. `PROVENANCE.toml` names the file and lines behind each
function. Nothing here is meant to be improved: the readable implementation is
`sdpo/loss/self_distillation.py`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

LOSS_AGG_MODES = (
    "token-mean",
    "seq-mean-token-sum",
    "seq-mean-token-mean",
    "seq-mean-token-sum-norm",
)

Trace = dict[str, Tensor]


def log_probs_from_logits(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of the label at each position.

    Shape: logits `(B, T, V)` after temperature, labels `(B, T)` int64; returns `(B, T)`.

    Numerics: float32 and float64 subtract a row-wise logsumexp from the label's logit; other
    dtypes take log_softmax in their own precision.
    """
    if logits.dtype in (torch.float32, torch.float64):
        label_logits = torch.gather(logits, dim=-1, index=labels.unsqueeze(-1)).squeeze(-1)
        return label_logits - torch.stack([torch.logsumexp(row, dim=-1) for row in logits])
    rows = []
    for row_logits, row_labels in zip(logits, labels, strict=True):
        row_log_probs = F.log_softmax(row_logits, dim=-1)
        rows.append(row_log_probs.gather(dim=-1, index=row_labels.unsqueeze(-1)).squeeze(-1))
    return torch.stack(rows)


def topk_log_probs(
    logits: Tensor, topk: int, topk_indices: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probabilities on the top-k entries, or on given indices.

    Shape: logits `(B, T, V)` after temperature. Returns log-probs and indices, both
    `(B, T, min(topk, V))`. The student chooses; the teacher is given the student's indices.
    """
    if topk_indices is None:
        values, topk_indices = torch.topk(logits, k=min(topk, logits.size(-1)), dim=-1)
    else:
        values = torch.gather(logits, dim=-1, index=topk_indices)
    return values - torch.logsumexp(logits, dim=-1, keepdim=True), topk_indices


def add_tail(log_probs: Tensor) -> Tensor:
    """Append the log of the mass that the top-k entries leave over: `(…, K)` to `(…, K+1)`.

    Numerics: the clamp keeps the tail at 1e-7 or more; where it is active no gradient passes.
    """
    log_mass = torch.logsumexp(log_probs, dim=-1, keepdim=True)
    log_mass = torch.clamp(log_mass, max=-1e-7)
    return torch.cat([log_probs, torch.log(-torch.expm1(log_mass))], dim=-1)


def renormalize(log_probs: Tensor) -> Tensor:
    """Rescale the top-k entries to sum to one: `(…, K)` to `(…, K)`."""
    return log_probs - torch.logsumexp(log_probs, dim=-1, keepdim=True)


def divergence(student: Tensor, teacher: Tensor, alpha: float) -> Tensor:
    """Per-token divergence over the support: `(B, T, S)` log-probs to `(B, T)`.

    `KL(teacher‖student)` at alpha 0, `KL(student‖teacher)` at alpha 1, otherwise
    `(1-alpha) KL(student‖m) + alpha KL(teacher‖m)` with `m` the mixture. Quirk: the mixture form is
    not rescaled and so tends to 0, not to the pure forms, as alpha tends to 0 or 1.
    """
    if alpha == 0.0:
        elements = F.kl_div(student, teacher, reduction="none", log_target=True)
    elif alpha == 1.0:
        elements = F.kl_div(teacher, student, reduction="none", log_target=True)
    else:
        weight = torch.tensor(alpha, dtype=student.dtype, device=student.device)
        mixture = torch.logsumexp(
            torch.stack([student + torch.log(1 - weight), teacher + torch.log(weight)]), dim=0
        )
        teacher_term = F.kl_div(mixture, teacher, reduction="none", log_target=True)
        student_term = F.kl_div(mixture, student, reduction="none", log_target=True)
        elements = torch.lerp(student_term, teacher_term, weight)
    return elements.sum(-1)


def importance_ratio(log_probs: Tensor, old_log_probs: Tensor, is_clip: float) -> Tensor:
    """Detached importance ratio `min(exp(clip(log_probs - old, ±20)), is_clip)`, `(B, T)`."""
    log_ratio = (log_probs - old_log_probs).detach()
    return torch.clamp(log_ratio, min=-20.0, max=20.0).exp().clamp(max=is_clip)


def rollout_is_weights(
    old_log_probs: Tensor, rollout_log_probs: Tensor, response_mask: Tensor, threshold: float
) -> Tensor:
    """Truncated token-level rollout-correction weights, `(B, T)`, detached.

    Raises:
        ValueError: the mask is all zero, the shapes differ, or the threshold is not above 0.
    """
    if not response_mask.any():
        raise ValueError("rollout importance weights need at least one unmasked token")
    shapes = [tuple(t.shape) for t in (old_log_probs, rollout_log_probs, response_mask)]
    if len(set(shapes)) > 1:
        raise ValueError(f"old and rollout log-probs and the mask differ in shape: {shapes}")
    if threshold <= 0:
        raise ValueError(f"rollout_is_threshold must be above 0, not {threshold}")
    log_ratio = torch.clamp(old_log_probs - rollout_log_probs, min=-20.0, max=20.0)
    weights = torch.exp(log_ratio) * response_mask
    return weights.clamp(max=threshold).detach()


def masked_sum(values: Tensor, mask: Tensor, axis: int | None = None) -> Tensor:
    """Sum over the places where the mask is not zero; what the others hold does not reach it."""
    return (torch.where(mask.bool(), values, 0.0) * mask).sum(axis)


def agg_loss(
    loss_mat: Tensor,
    loss_mask: Tensor,
    loss_agg_mode: str,
    batch_num_tokens: Tensor | None = None,
) -> Tensor:
    """Aggregate a `(B, T)` loss matrix to a scalar.

    Quirks: only `token-mean` guards masked places and empty batches; the `seq-mean-*` modes give
    0/0 on a batch without any unmasked row; `seq-mean-token-sum-norm` does not divide by rows.

    Numerics: rows are counted in float32, so that the `seq-mean-token-*` modes give float32 where
    the row sums are of a lower precision; a weight of 1 per row orders their sum as the original's.

    Raises:
        ValueError: unknown mode.
    """
    if loss_agg_mode == "token-mean":
        if batch_num_tokens is None:
            batch_num_tokens = loss_mask.sum()
        return masked_sum(loss_mat, loss_mask) / batch_num_tokens
    if loss_agg_mode in ("seq-mean-token-sum", "seq-mean-token-mean"):
        tokens = torch.sum(loss_mask, dim=-1)
        seq_losses = torch.sum(loss_mat * loss_mask, dim=-1)
        if loss_agg_mode == "seq-mean-token-mean":
            seq_losses = seq_losses / (tokens + 1e-8)
        kept = (tokens > 0).float()
        return masked_sum(seq_losses, kept) / kept.sum()
    if loss_agg_mode == "seq-mean-token-sum-norm":
        return torch.sum(torch.sum(loss_mat * loss_mask, dim=-1)) / loss_mask.shape[-1]
    raise ValueError(f"loss_agg_mode must be one of {LOSS_AGG_MODES}, not {loss_agg_mode!r}")


def compute_self_distillation_loss(
    *,
    student_log_probs: Tensor,
    teacher_log_probs: Tensor,
    response_mask: Tensor,
    old_log_probs: Tensor | None = None,
    student_topk_log_probs: Tensor | None = None,
    teacher_topk_log_probs: Tensor | None = None,
    student_all_log_probs: Tensor | None = None,
    teacher_all_log_probs: Tensor | None = None,
    self_distillation_mask: Tensor | None = None,
    rollout_is_weights: Tensor | None = None,
    full_logit_distillation: bool = True,
    distillation_topk: int | None = None,
    distillation_add_tail: bool = True,
    alpha: float = 0.0,
    is_clip: float | None = None,
    loss_agg_mode: str = "token-mean",
    trace: Trace | None = None,
) -> Tensor:
    """The self-distillation loss of one micro-batch, in nats.

    Shape: `*_log_probs` of the response tokens `(B, T)`; `*_topk_log_probs` `(B, T, K)`;
    `*_all_log_probs` `(B, T, V)`; masks, old log-probs and weights `(B, T)`;
    `self_distillation_mask` `(B,)`. Returns a scalar; `trace` collects the stage values.

    Raises:
        ValueError: log-probs that the mode needs are missing, or the mode is unknown.
        AssertionError: sampled-token mode with alpha other than 1.
    """
    trace = {} if trace is None else trace
    loss_mask = response_mask
    if self_distillation_mask is not None:
        loss_mask = loss_mask * self_distillation_mask.unsqueeze(1)
    if full_logit_distillation:
        if distillation_topk is not None:
            if student_topk_log_probs is None or teacher_topk_log_probs is None:
                raise ValueError("top-k distillation needs the top-k log-probs of both sides")
            on_support = add_tail if distillation_add_tail else renormalize
            student = on_support(student_topk_log_probs)
            teacher = on_support(teacher_topk_log_probs)
        else:
            if student_all_log_probs is None or teacher_all_log_probs is None:
                raise ValueError("full-vocabulary distillation needs the full log-probs")
            student, teacher = student_all_log_probs, teacher_all_log_probs
        per_token_loss = divergence(student, teacher, alpha)
        trace.update(student_support=student, teacher_support=teacher)
    else:
        assert alpha == 1.0, f"sampled-token distillation needs alpha 1.0, not {alpha}"
        log_ratio = student_log_probs - teacher_log_probs
        per_token_loss = log_ratio.detach() * student_log_probs
    trace["divergence"] = per_token_loss
    if is_clip is not None:
        if old_log_probs is None:
            raise ValueError("is_clip needs old_log_probs")
        per_token_loss = per_token_loss * importance_ratio(
            student_log_probs, old_log_probs, is_clip
        )
    if rollout_is_weights is not None:
        per_token_loss = per_token_loss * rollout_is_weights
    batch_num_tokens = loss_mask.sum().clamp(min=1.0)
    loss = agg_loss(per_token_loss, loss_mask, loss_agg_mode, batch_num_tokens)
    trace.update(
        per_token_loss=per_token_loss,
        loss_mask=loss_mask,
        batch_num_tokens=batch_num_tokens,
        loss=loss,
    )
    return loss


def loss_from_logits(
    student_logits: Tensor,
    teacher_logits: Tensor,
    responses: Tensor,
    response_mask: Tensor,
    *,
    temperature: float,
    full_logit_distillation: bool = True,
    distillation_topk: int | None = None,
    topk_indices: Tensor | None = None,
    trace: Trace | None = None,
    **loss_arguments,
) -> Tensor:
    """Temperature, log-probs and support, then the loss; the teacher without gradient.

    Shape: logits `(B, T, V)` before temperature, responses and mask `(B, T)`.
    `topk_indices` `(B, T, K)` replaces the choice of the support.
    """
    trace = {} if trace is None else trace
    student_logits = student_logits / temperature
    teacher_logits = (teacher_logits / temperature).detach()
    values = {
        "student_log_probs": log_probs_from_logits(student_logits, responses),
        "teacher_log_probs": log_probs_from_logits(teacher_logits, responses),
    }
    if full_logit_distillation and distillation_topk is not None:
        student, indices = topk_log_probs(student_logits, distillation_topk, topk_indices)
        teacher, _ = topk_log_probs(teacher_logits, distillation_topk, indices)
        values.update(student_topk_log_probs=student, teacher_topk_log_probs=teacher)
        trace["student_topk_indices"] = indices
    elif full_logit_distillation:
        values["student_all_log_probs"] = F.log_softmax(student_logits, dim=-1)
        values["teacher_all_log_probs"] = F.log_softmax(teacher_logits, dim=-1)
    trace.update(values)
    return compute_self_distillation_loss(
        response_mask=response_mask,
        full_logit_distillation=full_logit_distillation,
        distillation_topk=distillation_topk,
        trace=trace,
        **values,
        **loss_arguments,
    )
