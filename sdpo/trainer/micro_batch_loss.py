"""The self-distillation loss of one micro-batch: from all logits, or fused, from hidden states."""

from dataclasses import dataclass
from typing import NamedTuple

from accelerate import Accelerator
from torch import Tensor, nn

from sdpo.fused.fused_loss import fused_self_distillation_loss
from sdpo.fused.hidden_states import response_projection
from sdpo.loss.self_distillation import self_distillation_stages
from sdpo.settings.config import SDPOConfig
from sdpo.trainer.self_teachers import SelfTeacher
from sdpo.update.actor_update import Batch, response_logits, rows_with_signal, without_ratio
from sdpo.update.policy_terms import PolicyTerms, policy_terms


class MicroBatchResult(NamedTuple):
    """What was computed of a micro-batch.

    `total` is the loss with its policy terms, not yet scaled for accumulation; `values` are the
    stages' by name, of all rows, and none unless somebody looks; `terms` are those of the policy.
    """

    total: Tensor
    values: dict[str, Tensor]
    terms: dict[str, float]


@dataclass(frozen=True)
class MicroBatchLoss:
    """What the loss depends on besides the micro-batch.

    `config` has TRL's temperature; `padded_width` is the greatest length of a response, to which
    the reference pads all of them, while TRL pads to the longest of a batch.
    """

    config: SDPOConfig
    teacher: SelfTeacher
    accelerator: Accelerator
    on_policy: bool
    padded_width: int

    def __call__(self, model: nn.Module, batch: Batch, *, observed: bool) -> MicroBatchResult:
        """Compute the loss of a micro-batch, not yet scaled for accumulation.

        Args:
            model: the student as the training loop has wrapped it.
            batch: of `sdpo.update.rollouts.update_batch`.
            observed: whether somebody looks at the stages' values.
        """
        config = self.config
        if self.on_policy:
            batch, config = without_ratio(batch, config)
        compute = self._fused if config.loss_implementation == "fused" else self._from_logits
        loss, terms, values = compute(model, batch, config, observed)
        total = terms.added_to(loss, config)
        if config.loss_agg_mode == "seq-mean-token-sum-norm":
            share = batch["responses"].shape[1] / self.padded_width
            loss, total = loss * share, total * share
        values = values | {"aggregate": loss} if observed else {}
        return MicroBatchResult(total, values, terms.named())

    def _from_logits(
        self, model: nn.Module, batch: Batch, config: SDPOConfig, observed: bool
    ) -> tuple[Tensor, PolicyTerms, dict[str, Tensor]]:
        with self.accelerator.autocast():
            student = self.accelerator.unwrap_model(model)
            teacher_logits = self.teacher.logits(student, batch)
        logits = response_logits(model, batch, share_prompts=config.shares_prompts("student"))
        stages = self_distillation_stages(
            logits,
            teacher_logits.to(logits.dtype),
            batch["responses"],
            batch["response_mask"],
            old_log_probs=batch.get("old_log_probs"),
            self_distillation_mask=batch["self_distillation_mask"],
            rollout_is_weights=batch.get("rollout_is_weights"),
            config=config,
        )
        terms = policy_terms(
            logits,
            batch["responses"],
            batch["response_mask"],
            ref_log_prob=batch.get("ref_log_prob"),
            config=config,
        )
        return stages.aggregate, terms, stages.named() if observed else {}

    def _fused(
        self, model: nn.Module, batch: Batch, config: SDPOConfig, observed: bool
    ) -> tuple[Tensor, PolicyTerms, dict[str, Tensor]]:
        """Compute the loss without the logits of student or teacher.

        Rows without teacher signal are left out before the models run, unless somebody looks.
        """
        values: dict[str, Tensor] = {}
        if not observed:
            batch = rows_with_signal(batch)
        student = self.accelerator.unwrap_model(model)
        with self.accelerator.autocast():
            teacher, live = self.teacher.projections(student, batch)
        loss = fused_self_distillation_loss(
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
            trace=values if observed else None,
        )
        return loss, PolicyTerms(), values
