"""What the training loop tells `SDPOTrainer`."""

from typing import Any

from transformers import TrainerCallback


class AfterOptimizerStep(TrainerCallback):
    """Tells the trainer that an optimizer step was made."""

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_optimizer_step(self, args, state, control, **kwargs):
        """Called by the training loop right after the optimizer step."""
        self.trainer.after_optimizer_step()
