"""The SDPO loss: the stages in order, from logits to one number.

    logits ─ log_probs ─ support ─ tail ─ divergence ─ importance ─ aggregate ─► loss

Each stage is a pure function of its own module; this file only puts them together.
"""

import torch
from torch import Tensor

from sdpo.loss.aggregate import aggregate
from sdpo.loss.argument_shapes import check_logits, check_loss_arguments
from sdpo.loss.divergence import divergence, sampled_token_divergence
from sdpo.loss.importance import importance
from sdpo.loss.log_softmax import Softmax
from sdpo.loss.support import Support, log_probs, support, tail
from sdpo.settings.config import SDPOConfig

Trace = dict[str, Tensor]


def self_distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    responses: Tensor,
    response_mask: Tensor,
    *,
    old_log_probs: Tensor | None = None,
    self_distillation_mask: Tensor | None = None,
    rollout_is_weights: Tensor | None = None,
    config: SDPOConfig,
    trace: Trace | None = None,
) -> Tensor:
    """The self-distillation loss of one micro-batch.

    Args:
        student_logits: `(B, T, V)` before temperature; row `t` predicts response token `t`.
        teacher_logits: `(B, T, V)`, from the teacher's prompt and the same response; no gradient.
        responses: `(B, T)` int64 token ids.
        response_mask: `(B, T)`, 1 where a response token counts.
        old_log_probs: `(B, T)` under the policy before the update; needed if `config.is_clip` is.
        self_distillation_mask: `(B,)`, 1 for rows that have a teacher prompt; None for all rows.
        rollout_is_weights: `(B, T)`, or None.
        config: settings under verl's names.
        trace: receives the value of every stage under the stage's name.

    Returns:
        A scalar, in nats.

    Raises:
        ValueError: a setting needs a tensor that is missing, or a shape or dtype is another one.

    Numerics: places that the masks exclude are neutralised before anything is computed, so that
    NaN or infinity in padding reaches neither the loss nor the gradient.

    Source: `verl/trainer/ppo/core_algos.py` 1085-1188 at 0e6d5106.
    """
    optional = old_log_probs, self_distillation_mask, rollout_is_weights
    check_logits(student_logits, teacher_logits)
    check_loss_arguments(student_logits.shape[:2], responses, response_mask, *optional)
    trace = {} if trace is None else trace
    loss_mask = response_mask
    if self_distillation_mask is not None:
        loss_mask = response_mask * self_distillation_mask.unsqueeze(-1)
    counts = loss_mask != 0
    per_token_loss = token_losses(
        Softmax(student_logits, config.temperature, counts),
        Softmax(teacher_logits.detach(), config.temperature, counts),
        responses,
        old_log_probs=only_where(counts, old_log_probs),
        rollout_is_weights=only_where(counts, rollout_is_weights),
        config=config,
        trace=trace,
    )
    loss = aggregate(per_token_loss, loss_mask, loss_agg_mode=config.loss_agg_mode)
    trace.update({"loss_mask": loss_mask, "aggregate": loss})
    return loss


def token_losses(
    student: Softmax,
    teacher: Softmax,
    responses: Tensor,
    *,
    old_log_probs: Tensor | None,
    rollout_is_weights: Tensor | None,
    config: SDPOConfig,
    trace: Trace,
) -> Tensor:
    """The stages from logits `(…, V)`, normalised, up to the loss of each token `(…)`."""
    both = None
    if config.full_logit_distillation:
        both = support(student, teacher, distillation_topk=config.distillation_topk)
    return token_losses_on(
        log_probs(student, responses),
        log_probs(teacher, responses),
        both,
        old_log_probs=old_log_probs,
        rollout_is_weights=rollout_is_weights,
        config=config,
        trace=trace,
    )


def token_losses_on(
    student_log_probs: Tensor,
    teacher_log_probs: Tensor,
    both: Support | None,
    *,
    old_log_probs: Tensor | None,
    rollout_is_weights: Tensor | None,
    config: SDPOConfig,
    trace: Trace,
) -> Tensor:
    """The stages after the logits: from log-probs to the loss of each token `(…)`.

    Args:
        student_log_probs: `(…)` of the response tokens.
        teacher_log_probs: `(…)` of the response tokens.
        both: the entries that are compared; None compares the response tokens alone.
        old_log_probs: `(…)`, needed if `config.is_clip` is set.
        rollout_is_weights: `(…)`, or None.
        config: settings.
        trace: receives the value of every stage.
    """
    trace |= {"log_probs.student": student_log_probs, "log_probs.teacher": teacher_log_probs}
    if both is None:
        per_token_loss = sampled_token_divergence(student_log_probs, teacher_log_probs)
    else:
        per_token_loss = support_divergence(both, config, trace)
    trace["divergence"] = per_token_loss
    trace["importance"] = importance(
        per_token_loss,
        student_log_probs=student_log_probs,
        old_log_probs=old_log_probs,
        is_clip=config.is_clip,
        rollout_is_weights=rollout_is_weights,
    )
    return trace["importance"]


def support_divergence(both: Support, config: SDPOConfig, trace: Trace) -> Tensor:
    """Divergence over the top-k support, with tail or renormalised, or over the vocabulary."""
    indices, student, teacher = both
    trace |= {"support.student": student, "support.teacher": teacher}
    if indices is not None:
        trace["support.indices"] = indices
        student = tail(student, distillation_add_tail=config.distillation_add_tail)
        teacher = tail(teacher, distillation_add_tail=config.distillation_add_tail)
        trace |= {"tail.student": student, "tail.teacher": teacher}
    return divergence(student, teacher, alpha=config.alpha)


def only_where(counts: Tensor, values: Tensor | None) -> Tensor | None:
    """`values` with zeros at the places that do not count."""
    return None if values is None else torch.where(counts, values, 0.0)
