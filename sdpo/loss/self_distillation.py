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
from sdpo.loss.log_softmax import normalized
from sdpo.loss.stage_values import LossStages, TokenStages
from sdpo.loss.support import Support, log_probs, support, tail
from sdpo.settings.stage_settings import LossSettings


def self_distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    responses: Tensor,
    response_mask: Tensor,
    *,
    old_log_probs: Tensor | None = None,
    self_distillation_mask: Tensor | None = None,
    rollout_is_weights: Tensor | None = None,
    config: LossSettings,
) -> Tensor:
    """Compute the self-distillation loss of one micro-batch.

    Args:
        student_logits: `(B, T, V)` before temperature; row `t` predicts response token `t`.
        teacher_logits: `(B, T, V)`, from the teacher's prompt and the same response; no gradient.
        responses: `(B, T)` int64 token ids.
        response_mask: `(B, T)`, 1 where a response token counts.
        old_log_probs: `(B, T)` under the policy before the update; needed if `config.is_clip` is.
        self_distillation_mask: `(B,)`, 1 for rows that have a teacher prompt; None for all rows.
        rollout_is_weights: `(B, T)`, or None.
        config: settings under verl's names, such as an `SDPOConfig`.

    Returns:
        A scalar, in nats.

    Raises:
        ValueError: a setting needs a tensor that is missing, or a shape or dtype is another one.

    Numerics: places that the masks exclude are neutralised before anything is computed, so that
    NaN or infinity in padding reaches neither the loss nor the gradient.

    Source: `verl/trainer/ppo/core_algos.py` 1085-1188 at 0e6d5106.
    """
    return self_distillation_stages(
        student_logits,
        teacher_logits,
        responses,
        response_mask,
        old_log_probs=old_log_probs,
        self_distillation_mask=self_distillation_mask,
        rollout_is_weights=rollout_is_weights,
        config=config,
    ).aggregate


def self_distillation_stages(
    student_logits: Tensor,
    teacher_logits: Tensor,
    responses: Tensor,
    response_mask: Tensor,
    *,
    old_log_probs: Tensor | None = None,
    self_distillation_mask: Tensor | None = None,
    rollout_is_weights: Tensor | None = None,
    teacher_absent: Tensor | None = None,
    config: LossSettings,
) -> LossStages:
    """Compute the loss as `self_distillation_loss` does, and return the value of every stage.

    Where `teacher_absent` `(B, T)` the teacher's log-probs are 0, as in the packed rows of verl.
    """
    check_logits(student_logits, teacher_logits)
    check_loss_arguments(
        student_logits.shape[:2],
        responses,
        response_mask,
        old_log_probs,
        self_distillation_mask,
        rollout_is_weights,
    )
    loss_mask = response_mask
    if self_distillation_mask is not None:
        loss_mask = response_mask * self_distillation_mask.unsqueeze(-1)
    counts = loss_mask != 0
    # normalised once for both stages that read the logits
    student = normalized(student_logits, config.temperature, counts)
    teacher = normalized(teacher_logits.detach(), config.temperature, counts)
    compared = None
    if config.full_logit_distillation:
        compared = support(student, teacher, distillation_topk=config.distillation_topk)
    of_teacher = log_probs(teacher, responses)
    if teacher_absent is not None:
        of_teacher = of_teacher.masked_fill(teacher_absent, 0.0)
        absent = teacher_absent.unsqueeze(-1)
        compared = compared and compared._replace(teacher=compared.teacher.masked_fill(absent, 0.0))
    tokens = stages_from_log_probs(
        log_probs(student, responses),
        of_teacher,
        compared,
        old_log_probs=_zeros_elsewhere(counts, old_log_probs),
        rollout_is_weights=_zeros_elsewhere(counts, rollout_is_weights),
        config=config,
    )
    loss = aggregate(tokens.importance, loss_mask, loss_agg_mode=config.loss_agg_mode)
    return LossStages(tokens, loss_mask, loss)


def stages_from_log_probs(
    student_log_probs: Tensor,
    teacher_log_probs: Tensor,
    compared: Support | None,
    *,
    old_log_probs: Tensor | None,
    rollout_is_weights: Tensor | None,
    config: LossSettings,
) -> TokenStages:
    """Compute the stages after `support` up to the loss of each token `(…)`.

    Args:
        student_log_probs: `(…)` of the response tokens.
        teacher_log_probs: `(…)` of the response tokens.
        compared: the entries of the vocabulary that are compared; None compares the response
            tokens alone.
        old_log_probs: `(…)`, needed if `config.is_clip` is set.
        rollout_is_weights: `(…)`, or None.
        config: settings.
    """
    tails = None
    if compared is None:
        per_token_divergence = sampled_token_divergence(student_log_probs, teacher_log_probs)
    else:
        sides = compared.student, compared.teacher
        if compared.indices is not None:
            add_tail = config.distillation_add_tail
            sides = tails = (
                tail(compared.student, distillation_add_tail=add_tail),
                tail(compared.teacher, distillation_add_tail=add_tail),
            )
        per_token_divergence = divergence(*sides, alpha=config.alpha)
    per_token_loss = importance(
        per_token_divergence,
        student_log_probs=student_log_probs,
        old_log_probs=old_log_probs,
        is_clip=config.is_clip,
        rollout_is_weights=rollout_is_weights,
    )
    return TokenStages(
        student_log_probs,
        teacher_log_probs,
        compared,
        tails,
        per_token_divergence,
        per_token_loss,
    )


def _zeros_elsewhere(counts: Tensor, values: Tensor | None) -> Tensor | None:
    """Replace values at the places that do not count by zeros."""
    return None if values is None else torch.where(counts, values, 0.0)
