"""`SDPOTrainer`: self-distillation on top of TRL's GRPO trainer.

TRL generates, scores, accumulates and steps; this class adds the teacher. Per generation:

    rollouts ─ teacher_inputs ─► micro-batches ─ loss ─► gradients ─ optimizer step ─ … ─ EMA

The maths is in the modules without TRL (`sdpo.loss`, `sdpo.prompt`, `sdpo.update`); this file only
puts it at the right places. `docs/trainer.md` says how TRL's settings map to the reference's.
"""

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportPrivateImportUsage]

from sdpo.settings.config import SDPOConfig
from sdpo.trainer.bitsandbytes_cpu import keep_trainable
from sdpo.trainer.checkpoint import load_trainer_state, save_trainer_state
from sdpo.trainer.checks import (
    SDPOWarning,
    check_grpo_loss,
    check_model,
    check_sharding,
    check_tokenizer,
    effective_config,
    sharding_asked_for,
)
from sdpo.trainer.log_probs_before_update import LogProbsBeforeUpdate, ReferencePolicy
from sdpo.trainer.micro_batch_loss import MicroBatchLoss
from sdpo.trainer.optimizer_hook import AfterOptimizerStep
from sdpo.trainer.self_teachers import build_teacher
from sdpo.trainer.teacher_inputs import (
    collect_feedback,
    in_order,
    teacher_inputs,
    weighted_rewards,
)
from sdpo.update.observer import UpdateObserver
from sdpo.update.rollouts import Rollouts, TRLBatch, response_mask_of, update_batch
from sdpo.update.schedule import (
    Schedule,
    aggregation_weight,
    micro_batch_scale,
    mini_batch_weights,
)

if TYPE_CHECKING:
    from sdpo.lockstep.parity_callback import ParityCallback


class SDPOTrainer(GRPOTrainer):
    """Self-distilled policy optimization, hybrid with GRPO, or plain GRPO.

    Args:
        model: as for `trl.GRPOTrainer`.
        reward_funcs: as for `trl.GRPOTrainer`; feedback for the teacher is read from a function's
            attribute `last_feedback`, from a column logged with `log_extra`, or from a column of
            the rollouts (`sdpo_config.feedback_column`).
        args: TRL's settings. `temperature`, `max_grad_norm` and `learning_rate` are read here, not
            from `sdpo_config`.
        sdpo_config: settings of loss, teacher and teacher prompt; None for the defaults.
        **arguments: everything else that `trl.GRPOTrainer` takes.

    Raises:
        ConfigError: settings of the two configurations contradict each other, or do not suit the
            model.
    """

    args: Any
    model: nn.Module
    num_generations: int
    num_generations_eval: int
    reward_funcs: list[Any]
    chat_template_kwargs: dict[str, Any]

    _tag_names: ClassVar = ["trl", "sdpo"]
    _name = "SDPO"
    _paper: ClassVar = {
        "title": "Reinforcement Learning via Self-Distillation",
        "id": "2601.20802",
    }

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: GRPOConfig | None = None,
        *,
        sdpo_config: SDPOConfig | None = None,
        **arguments: Any,
    ):
        self.sdpo_config = sdpo_config or SDPOConfig()
        if self.sdpo_config.enabled:
            check_sharding(**sharding_asked_for(args))
            check_tokenizer(arguments.get("processing_class"))
            check_grpo_loss(GRPOTrainer, self.sdpo_config)
        super().__init__(model, reward_funcs, args, **arguments)
        keep_trainable(self.model)
        self.observers: list[UpdateObserver] = []
        self.audit: ParityCallback | None = None
        if not self.sdpo_config.enabled:
            return
        check_sharding(fsdp=self.is_fsdp_enabled, deepspeed=self.is_deepspeed_enabled)
        self.schedule = Schedule(
            self.args.gradient_accumulation_steps,
            self.args.steps_per_generation,
            self.args.num_iterations,
        )
        if self.sdpo_config.micro_batch_semantics == "exact":
            self.schedule.check_exact()
        self.loss_config = effective_config(self.sdpo_config, self.args, self.schedule)
        check_model(self.model, self.sdpo_config, self.args)
        self.teacher = build_teacher(self.model, self.sdpo_config)
        self.micro_batch_loss = MicroBatchLoss(
            self.loss_config,
            self.teacher,
            self.accelerator,
            self.schedule.on_policy,
            self.args.max_completion_length,
        )
        anchored = self.sdpo_config.use_kl_loss
        self.reference_policy = ReferencePolicy(self.model) if anchored else None
        self.log_probs_before_update = LogProbsBeforeUpdate(
            self.loss_config,
            self.accelerator,
            self.schedule.on_policy,
            self.args.per_device_train_batch_size,
            self.reference_policy,
        )
        self._stepped: list[bool] = []
        self._scored: tuple[Any, Tensor, list[Any]] | None = None
        self._had_signal = True
        self.add_callback(AfterOptimizerStep(self))
        if self.sdpo_config.audit_every or self.sdpo_config.audit_lockstep:
            self.audit = self._begin_audit()

    def _begin_audit(self) -> "ParityCallback":
        """Make the callback that compares updates with the reference listen."""
        from sdpo.lockstep.parity_callback import ParityCallback

        config = self.sdpo_config
        callback = ParityCallback(
            self,
            every=config.audit_every,
            lockstep=config.audit_lockstep,
            folder=Path(config.audit_dir or Path(self.args.output_dir) / "parity"),
        )
        self.add_callback(callback)
        self.observers.append(callback)
        return callback

    # --- rollouts ---------------------------------------------------------------------------

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if self.sdpo_config.enabled:
            sources = self._feedback_sources(inputs)
            self._scored = (prompts, rewards, collect_feedback(sources, len(prompts)))
        return rewards

    def _feedback_sources(self, inputs: list[TRLBatch]) -> dict[str, object]:
        """Whatever may hold feedback: reward functions, the logged column, the rollouts."""
        sources = {}
        for name, function in zip(self.reward_func_names, self.reward_funcs, strict=True):
            if hasattr(function, "last_feedback"):
                sources[f"reward function {name!r}"] = function.last_feedback
        column = self.sdpo_config.feedback_column
        if column in self._pending_extra_logs:
            sources[f"logged column {column!r}"] = list(self._pending_extra_logs[column])
        if any(column in row for row in inputs):
            sources[f"column {column!r}"] = [row.get(column) for row in inputs]
        return sources

    def _generate_and_score_completions(self, inputs):
        batch = super()._generate_and_score_completions(inputs)
        if not self.sdpo_config.enabled:
            return batch
        assert self._scored is not None
        prompts, rewards, feedbacks = self._scored
        rollouts = Rollouts(
            prompts,
            batch["completion_ids"],
            response_mask_of(batch),
            weighted_rewards(rewards, self.reward_weights),
            feedbacks,
        )
        mode = "train" if self.model.training else "eval"
        found = teacher_inputs(
            rollouts,
            getattr(self.processing_class, "tokenizer", self.processing_class),
            self.sdpo_config,
            group_size=self.num_generations if mode == "train" else self.num_generations_eval,
            template_kwargs=self._template_arguments(),
            gather=gather_object,
            process_index=self.accelerator.process_index,
        )
        for name, value in found.metrics.items():
            self._metrics[mode][name].append(value)
        if mode == "train":
            self._warn_without_signal(found.metrics, len(rewards))
        batch |= found.tensors
        batch |= self.log_probs_before_update(self.model, batch)
        for observer in self.observers:
            observer.on_rollouts(rollouts, found.trace, batch)
        return batch

    def _template_arguments(self) -> dict[str, object]:
        """Chat-template arguments that TRL renders the student's prompts with."""
        own = {"tools": self.tools or None, "chat_template": self.chat_template}
        return {k: v for k, v in own.items() if v is not None} | self.chat_template_kwargs

    def _warn_without_signal(self, metrics: dict[str, float], rows: int) -> None:
        """Warn when no row has a teacher signal, once until there was one again."""
        signal = metrics["self_distillation/reprompt_sample_fraction"] > 0
        if self._had_signal and not signal and self.accelerator.is_main_process:
            warnings.warn(
                f"0 of {rows} rows have a teacher signal at step {self.state.global_step}: the "
                "loss is 0. No attempt reached success_reward_threshold="
                f"{self.sdpo_config.success_reward_threshold} beside another one of its group, and "
                "there is no feedback to use; lower the threshold or give feedback",
                SDPOWarning,
                stacklevel=2,
            )
        self._had_signal = signal

    def _prepare_inputs(self, generation_batch):
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if not self.sdpo_config.enabled or self._buffered_inputs is before:
            return inputs
        self._buffered_inputs = in_order(self._buffered_inputs)
        if self.sdpo_config.micro_batch_semantics == "exact":
            self._weigh(self._buffered_inputs)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _weigh(self, parts: list[TRLBatch]) -> None:
        """Give every micro-batch its weight and that of its mini-batch over all processes."""
        mode = self.sdpo_config.loss_agg_mode
        masks = [response_mask_of(p) * p["self_distillation_mask"].unsqueeze(-1) for p in parts]
        own = torch.stack([aggregation_weight(mask, mode) for mask in masks])
        everyone: Any = self.accelerator.reduce(own.clone(), reduction="sum")
        totals = mini_batch_weights(everyone, self.args.gradient_accumulation_steps, mode)
        for part, weight, total in zip(parts, own, totals, strict=True):
            part |= {"weight": weight, "mini_batch_weight": total}

    # --- loss -------------------------------------------------------------------------------

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """As TRL's, also where Unsloth has put a GRPO loss of its own into the parent class."""
        if return_outputs or not self.sdpo_config.enabled:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return self._compute_loss(model, inputs)

    def _compute_loss(self, model, inputs):
        if not self.sdpo_config.enabled:
            return super()._compute_loss(model, inputs)
        share = self.sdpo_config.hybrid_lambda
        loss = self._self_distillation_loss(model, inputs)
        if share == 0:
            return loss
        return share * super()._compute_loss(model, inputs) + (1 - share) * loss

    def _self_distillation_loss(self, model: nn.Module, inputs: TRLBatch) -> Tensor:
        """Compute the loss of one micro-batch, scaled for accumulation."""
        observers = self.observers if self.model.training else []
        batch = update_batch(inputs)
        for observer in observers:
            observer.on_micro_batch_begin(inputs)
        result = self.micro_batch_loss(model, batch, observed=bool(observers))
        mode, scale = "train" if self.model.training else "eval", self._scale(inputs)
        for name, value in result.terms.items():
            self._metrics[mode][f"self_distillation/{name}"].append(value)
        for observer in observers:
            observer.on_micro_batch_end(batch, result.values, scale)
        return result.total * scale

    def _scale(self, inputs: TRLBatch) -> Tensor | float:
        """Share of a micro-batch in the mini-batch's loss."""
        scale: Tensor | float = 1.0
        if self.model.training:
            scale = micro_batch_scale(
                self.sdpo_config,
                self.schedule,
                weight=inputs.get("weight", 1.0),
                mini_batch_weight=inputs.get("mini_batch_weight", 1.0),
                ranks=self.accelerator.num_processes,
            )
        return scale

    # --- optimizer step, teacher, checkpoints -----------------------------------------------

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """As the parent's; a run resumed from its last checkpoint makes no step beyond its end."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return [], None
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Process one micro-batch; after the last one of a step, observers see the gradients."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            for observer in self.observers:
                observer.on_gradients(self.model)
        return loss

    def _get_grad_norm(self, model, grad_norm=None):
        norm: Any = super()._get_grad_norm(model, grad_norm)
        if self.sdpo_config.enabled:
            finite = math.isfinite(float(norm))
            self._stepped.append(finite)
            if not finite:
                # As the reference: the optimizer must not see the step at all. It passes over
                # parameters without gradient, also with their momentum and weight decay.
                for parameter in model.parameters():
                    parameter.grad = None
            self._metrics["train"]["self_distillation/skipped_steps"].append(float(not finite))
        return norm

    def after_optimizer_step(self) -> None:
        """Let the teacher follow, if this was the last optimizer step of an update."""
        if self.schedule.ends_update(self._step):
            student = self.accelerator.unwrap_model(self.model)
            self.teacher.update(student, stepped=any(self._stepped))
            self._stepped = []

    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        if self.sdpo_config.enabled:
            folder = Path(self._get_output_dir(trial=trial))
            save_trainer_state(self, folder / f"checkpoint-{self.state.global_step}")

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.sdpo_config.enabled and checkpoint is not None:
            load_trainer_state(self, Path(checkpoint))
