"""This project's trainer, `sdpo.trainer.sdpo_trainer.SDPOTrainer`."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from sdpo.parity.cases.stages import NAMES
from sdpo.parity.cases.value_names import PROMPT_SETTINGS, UPDATE_SETTINGS
from sdpo.parity.trainers.recording.adapter_base import (
    COMMON_IMPORTS,
    HFTrainer,
    StageRecorder,
    TrainerParts,
)
from sdpo.parity.trainers.recording.hf_trainer import HFTrainerAdapter
from sdpo.parity.trainers.recording.hooks import Arguments
from sdpo.prompt.teacher_batch import PromptTrace
from sdpo.settings.stage_settings import POLICY_TERMS
from sdpo.update.actor_update import Batch
from sdpo.update.observer import UpdateObserver
from sdpo.update.rollouts import Rollouts

SETTINGS = (*UPDATE_SETTINGS, *POLICY_TERMS, *PROMPT_SETTINGS, "loss_agg_mode")
PEFT_PREFIX = "base_model.model."
PROMPTS: tuple[Literal["feedback", "demonstration", "teacher_prompt"], ...] = (
    "feedback",
    "demonstration",
    "teacher_prompt",
)


class OwnTrainer(HFTrainerAdapter):
    """`SDPOTrainer`, seen by an observer of its updates, as its audit callback is one.

    LoRA teachers are measured by the average of what adapters add to the weights, which
    `lora_average="effective"` follows; `OwnTrainerFactors` is audited with the default, which
    averages the two factors and so differs in second order. The trainer derives from that of TRL
    1.16 and later; no other release is audited.
    """

    name = "sdpo-trainer"
    package = "trl"
    versions = ">=1.16,<2"
    install = "'sdpo[train]'"
    imports = (*COMMON_IMPORTS, "sdpo.trainer.sdpo_trainer")
    teacher_adapter = "sdpo_teacher"
    policy_terms = True
    further_inputs: ClassVar[Mapping[str, str]] = {
        "rollout_is_weights": "rollout_is_weights",
        "response_mask": "tool_mask",
    }
    lora_average: ClassVar[str] = "effective"
    stages: ClassVar[tuple[str, ...]] = NAMES

    def build(self, parts: TrainerParts) -> tuple[Any, Mapping[str, object]]:
        """Build the trainer, which reads feedback from the reward function's `last_feedback`."""
        from trl import GRPOConfig  # pyright: ignore[reportPrivateImportUsage]

        from sdpo.trainer.sdpo_trainer import SDPOTrainer

        config = replace(parts.settings, loss_agg_mode=parts.scenario.loss_agg_mode)
        if parts.scenario.lora and config.teacher_regularization == "ema":
            config = replace(config, teacher_mode="lora_ema", lora_average=self.lora_average)
        trainer = SDPOTrainer(
            model=parts.model,
            reward_funcs=parts.rewards,
            args=GRPOConfig(**parts.arguments),
            sdpo_config=config,
            processing_class=parts.tokenizer,
            train_dataset=parts.dataset,
            optimizers=(parts.optimizer, None),
        )
        found = {name: getattr(trainer.sdpo_config, name) for name in SETTINGS}
        found |= {
            "temperature": trainer.args.temperature,
            "grad_clip": trainer.args.max_grad_norm,
        }
        return trainer, found

    def teacher(self, trainer: HFTrainer) -> nn.Module | None:
        """Return the copy; with LoRA the student, of which the teacher is another adapter."""
        return getattr(trainer.teacher.weights, "module", trainer.model)

    def teacher_adapters(self, trainer: HFTrainer) -> tuple[str, ...]:
        """Return the teacher's; none where averages of effective weights are added instead."""
        effective = hasattr(trainer.teacher.weights, "deltas")
        return () if effective else super().teacher_adapters(trainer)

    def teacher_weights(self, trainer: HFTrainer) -> dict[str, Tensor]:
        """Copy the teacher's weights by name; of a LoRA teacher the effective ones."""
        weights = trainer.teacher.weights
        if not hasattr(weights, "deltas"):
            return super().teacher_weights(trainer)
        layers = zip(weights.layers.items(), weights.deltas, strict=True)
        return {
            f"{name.removeprefix(PEFT_PREFIX)}.weight": (layer.base_layer.weight + delta).detach()
            for (name, layer), delta in layers
        }

    def observe(self, trainer: HFTrainer, recorder: StageRecorder) -> None:
        """Add an observer that tells the recorder."""
        trainer.observers.append(_Tap(recorder))
        recorder.watch.expect("SDPOTrainer.observers.on_rollouts")
        recorder.watch.expect("SDPOTrainer.observers.on_micro_batch_end")
        if trainer.sdpo_config.teacher_regularization == "trust-region":
            self._show_mixed_logits(recorder)

    def sources(self, trainer: HFTrainer) -> Mapping[str, object]:
        """Return where this project computes each stage."""
        from sdpo.loss import aggregate, divergence, importance, support
        from sdpo.prompt import teacher_batch

        kind: Any = type(trainer)
        return {
            **{stage: getattr(teacher_batch, stage) for stage in (*PROMPTS, "teacher_tokens")},
            "distillation_mask": teacher_batch.distillation_mask,
            "log_probs": support.log_probs,
            "support": support.support,
            "tail": support.tail,
            "divergence": divergence.divergence,
            "importance": importance.importance,
            "aggregate": aggregate.aggregate,
            "accumulate": kind._self_distillation_loss,
            "optimizer": kind._get_grad_norm,
            "teacher_update": kind.after_optimizer_step,
        }

    def _show_mixed_logits(self, recorder: StageRecorder) -> None:
        """Record a trust-region teacher's logits at the loss: no module returns the mix."""
        import sdpo.trainer.micro_batch_loss

        def seen(arguments: Arguments, result: Any) -> None:
            if recorder.micro is not None:
                recorder.micro.logits["teacher"] = arguments["teacher_logits"].detach().clone()

        recorder.watch.function(sdpo.trainer.micro_batch_loss, "self_distillation_stages", seen)


class _Tap(UpdateObserver):
    """Tells the recorder of an audit what it hears."""

    def __init__(self, recorder: StageRecorder):
        self.recorder = recorder

    def on_rollouts(self, rollouts: Rollouts, trace: PromptTrace, batch: Batch) -> None:
        """Record the stages of the teacher prompt."""
        self.recorder.watch.calls["SDPOTrainer.observers.on_rollouts"] += 1
        for stage in PROMPTS:
            self.recorder.prompts(stage, trace[stage])

    def on_micro_batch_end(
        self, batch: Batch, values: dict[str, Tensor], scale: Tensor | float
    ) -> None:
        """Record the stages of the loss."""
        self.recorder.watch.calls["SDPOTrainer.observers.on_micro_batch_end"] += 1
        if "old_log_probs" in batch and self.recorder.micro is not None:
            self.recorder.micro.inputs["old_log_probs"] = batch["old_log_probs"].clone()
        self.recorder.values({k: v for k, v in values.items() if k != "loss_mask"})


class OwnTrainerFactors(OwnTrainer):
    """The same with the default average of adapters."""

    name = "sdpo-trainer-factors"
    lora_average = "factors"
