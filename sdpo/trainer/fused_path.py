"""The trainer's loss from hidden states: the fused one."""

from typing import Any

from torch import Tensor, nn

from sdpo.fused.fused_loss import fused_self_distillation_loss
from sdpo.fused.hidden_states import response_projection
from sdpo.update.actor_update import Batch, rows_with_signal, without_ratio


def fused_loss(
    trainer: Any, model: nn.Module, batch: Batch, trace: dict[str, Tensor] | None
) -> Tensor:
    """Loss of one micro-batch, unscaled, without the logits of student or teacher.

    Rows without teacher signal are left out before the models run, and on-policy there are no old
    log-probs: the ratio is 1.

    Args:
        trainer: an `SDPOTrainer`.
        model: the student as the training loop has wrapped it.
        batch: of `sdpo.update.rollouts.update_batch`.
        trace: receives the stages' values of all rows; None if nobody looks.
    """
    config, student = trainer.loss_config, trainer.accelerator.unwrap_model(model)
    if trainer.schedule.on_policy:
        batch, config = without_ratio(batch, config)
    if trace is None:
        batch = rows_with_signal(batch)
    with trainer.accelerator.autocast():
        teacher, live = trainer.teacher.projections(student, batch)
    return fused_self_distillation_loss(
        response_projection(
            model, batch, within=student, share_prompts=config.shares_prompts("student")
        ),
        teacher,
        batch["responses"],
        batch["response_mask"],
        live=live,
        old_log_probs=batch.get("old_log_probs"),
        self_distillation_mask=batch["self_distillation_mask"],
        rollout_is_weights=batch.get("rollout_is_weights"),
        config=config,
        trace=trace,
    )
