"""A trainer derived from TRL's, and the adapter by which it is audited.

sdpo audit examples/audit_my_hf_trainer.py:MyAdapter

The trainer has one plausible mistake: its teacher follows after every optimizer step, where the
reference lets it follow once per generation. The two are the same thing as long as a generation is
used for one step, so training looks right; the audit finds it where a generation is used for more.
"""

from dataclasses import replace
from typing import ClassVar

from trl import GRPOConfig  # pyright: ignore[reportPrivateImportUsage]

import sdpo.trainer.sdpo_trainer
from sdpo.parity import HFTrainerAdapter, NotCoveredError, TrainerParts
from sdpo.trainer import micro_batch_loss


class MyTrainer(sdpo.trainer.sdpo_trainer.SDPOTrainer):
    """The trainer to audit."""

    def after_optimizer_step(self) -> None:
        """Let the teacher follow."""
        self.teacher.update(self.accelerator.unwrap_model(self.model))


class MyAdapter(HFTrainerAdapter):
    """Says how `MyTrainer` is built, which module its teacher is, and where its values are."""

    name = "my-trainer"
    stages = (
        *HFTrainerAdapter.stages,
        "config",
        "distillation_mask",
        "teacher_prompt",
        "aggregate",
    )
    further_inputs: ClassVar = {
        "rollout_is_weights": "rollout_is_weights",
        "response_mask": "tool_mask",
    }
    trainer = MyTrainer

    def build(self, parts: TrainerParts):
        """The trainer on the parts that the audit scripts, and the settings it ended up with."""
        refuse(parts)
        trainer = self.trainer(
            model=parts.model,
            args=GRPOConfig(**parts.arguments),
            sdpo_config=replace(parts.settings, loss_agg_mode=parts.scenario.loss_agg_mode),
            processing_class=parts.tokenizer,
            reward_funcs=parts.rewards,
            train_dataset=parts.dataset,
            optimizers=(parts.optimizer, None),
        )
        config = trainer.sdpo_config
        return trainer, {name: getattr(config, name) for name in parts.scenario.self_distillation}

    def teacher(self, trainer):
        """A second model. A teacher that is an adapter of the student's model: `trainer.model`."""
        return trainer.teacher.weights.module

    def observe(self, trainer, recorder):
        """Two functions of the trainer show what the audit cannot see from outside."""
        recorder.watch.function(
            sdpo.trainer.sdpo_trainer,
            "teacher_inputs",
            lambda given, found: recorder.prompts("teacher_prompt", found.trace["teacher_prompt"]),
        )
        recorder.watch.function(
            micro_batch_loss,
            "self_distillation_stages",
            lambda given, stages: recorder.values({"aggregate": stages.aggregate}),
        )


def refuse(parts: TrainerParts) -> None:
    """Say what the audit cannot follow with this adapter, so that the report lists it."""
    cannot = {
        "a teacher that is an adapter: it names a module only": parts.scenario.lora,
        "a teacher of mixed logits: no module answers with them": (
            parts.settings.teacher_regularization != "ema"
        ),
    }
    if found := [text for text, needed in cannot.items() if needed]:
        raise NotCoveredError("the adapter cannot show " + "; ".join(found))
