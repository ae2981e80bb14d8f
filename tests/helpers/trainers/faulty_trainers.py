"""Trainers with one fault each, for the audit to find."""

from typing import Any

from sdpo.trainer.sdpo_trainer import SDPOTrainer


class NotDivided(SDPOTrainer):
    def _scale(self, inputs):
        return 1.0


class AveragedPerMicroBatch(SDPOTrainer):
    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.teacher.update(self.model)
        return loss


class DroppingTeacher(SDPOTrainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        teacher: Any = self.teacher
        for module in teacher.weights.module.train().modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.5


class WrongRate(SDPOTrainer):
    def after_optimizer_step(self):
        self.teacher.update(self.model)
        super().after_optimizer_step()


class Unscaled(SDPOTrainer):
    """The average of effective LoRA weights without the adapter's scale."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        real = self.teacher.weights.student_parameters
        self.teacher.weights.student_parameters = lambda model: [delta / 2 for delta in real(model)]


class WrongStep(SDPOTrainer):
    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm)
        for parameter in model.parameters():
            parameter.grad[0] = 0
        return norm
