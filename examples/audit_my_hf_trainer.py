"""A trainer derived from TRL's, and the adapter by which it is audited.

sdpo audit examples/audit_my_hf_trainer.py:MyAdapter

The trainer has one plausible mistake: its teacher follows after every optimizer step, where the
reference lets it follow once per generation. The two are the same thing as long as a generation is
used for one step, so training looks right; the audit finds it where a generation is used for more.
"""

from trl import GRPOConfig  # pyright: ignore[reportPrivateImportUsage]

import sdpo.trainer
from sdpo.parity.adapters.trainers.base import HFTrainerAdapter, Parts


class MyTrainer(sdpo.trainer.SDPOTrainer):
    """The trainer to audit."""

    def after_optimizer_step(self) -> None:
        """Let the teacher follow."""
        self.teacher.update(self.accelerator.unwrap_model(self.model))


class MyAdapter(HFTrainerAdapter):
    """Says how `MyTrainer` is built, which module its teacher is, and where its values are."""

    name = "my-trainer"
    stages = (*HFTrainerAdapter.stages, "distillation_mask", "teacher_prompt", "aggregate")

    def build(self, parts: Parts):
        """The trainer on the parts that the audit scripts, and the settings it ended up with."""
        trainer = MyTrainer(
            model=parts.model,
            args=GRPOConfig(**parts.arguments),
            sdpo_config=parts.settings,
            processing_class=parts.tokenizer,
            reward_funcs=parts.rewards,
            train_dataset=parts.dataset,
            optimizers=(parts.optimizer, None),
        )
        config = trainer.sdpo_config
        return trainer, {"alpha": config.alpha, "distillation_topk": config.distillation_topk}

    def teacher(self, trainer):
        """A second model; with LoRA it would be `trainer.model` and `teacher_adapter` its name."""
        return trainer.teacher.module

    def observe(self, trainer, recorder):
        """Two functions of the trainer's module show what the audit cannot see from outside."""
        recorder.watch.function(
            sdpo.trainer,
            "teacher_inputs",
            lambda given, found: recorder.prompts("teacher_prompt", found.trace["teacher_prompt"]),
        )
        recorder.watch.function(
            sdpo.trainer,
            "self_distillation_loss",
            lambda given, loss: recorder.values({"aggregate": loss}),
        )
