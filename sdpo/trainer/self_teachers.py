"""The self-teacher of the trainer: it answers on its own prompts, and follows the student.

Where its weights live is `sdpo.trainer.teacher_weights`; the rule by which they follow is
`sdpo.update.ema_teacher.teacher_update`. A teacher answers in evaluation mode, without gradient.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from sdpo.fused.hidden_states import response_projection
from sdpo.fused.lm_head import Projection
from sdpo.settings.config import ConfigError, SDPOConfig
from sdpo.trainer.teacher_weights import (
    AdapterWeights,
    Answer,
    CopyWeights,
    EffectiveWeights,
    TeacherWeights,
)
from sdpo.update.actor_update import Batch, response_logits, rows_with_signal
from sdpo.update.ema_teacher import ema_stalls, teacher_update, trust_region_logits


class TeacherWarning(UserWarning):
    """A teacher that will not do what was probably meant."""


@dataclass
class SelfTeacher:
    """A teacher with weights of its own, whose logits may be mixed with the live student's."""

    weights: TeacherWeights
    config: SDPOConfig

    @torch.no_grad()
    def logits(self, student: nn.Module, batch: Batch) -> Tensor:
        """Compute logits `(B, T, V)` on the teacher's prompts, before temperature.

        Rows without a teacher signal get zeros.
        """
        forward = partial(response_logits, share_prompts=self.config.shares_prompts("teacher"))
        logits = at_rows_with_signal(
            batch, lambda rows: self.weights.answer(student, rows, forward)
        )
        if self.config.teacher_regularization == "trust-region":
            # As in the reference, the live student answers in whatever mode it is in.
            live = self._of_student(student, batch, response_logits)
            # Under autocast the copy answers in bfloat16, the prepared student in float32.
            mix = self.config.teacher_update_rate
            return trust_region_logits(logits.to(live.dtype), live, mix)
        return logits

    @torch.no_grad()
    def projections(self, student: nn.Module, batch: Batch) -> tuple[Projection, Projection | None]:
        """Answer with hidden states and head; second, the live student's if their logits mix."""
        forward = partial(response_projection, share_prompts=self.config.shares_prompts("teacher"))
        own = self.weights.answer(student, batch, forward)
        mixed = self.config.teacher_regularization == "trust-region"
        return own, self._of_student(student, batch, response_projection) if mixed else None

    def _of_student(
        self, student: nn.Module, batch: Batch, forward: Callable[..., Answer]
    ) -> Answer:
        """Let the live student answer on the teacher's prompts."""
        share = self.config.shares_prompts("student")
        return forward(student, batch, "teacher_", share_prompts=share)

    def update(self, student: nn.Module, *, stepped: bool = True) -> None:
        """Follow the student, once per update; nothing moves if no optimizer step was taken."""
        teacher_update(
            self.weights.parameters(),
            self.weights.student_parameters(student),
            teacher_regularization=self.config.teacher_regularization,
            teacher_update_rate=self.config.teacher_update_rate,
            stepped=stepped,
        )
        self.weights.changed()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weights by name, for a checkpoint."""
        named = self.named_parameters()
        return {name: tensor.detach().contiguous().cpu() for name, tensor in named.items()}

    def named_parameters(self) -> dict[str, Tensor]:
        """Return the weights that may follow the student by name, the tensors themselves."""
        return dict(zip(self.weights.names, self.weights.parameters(), strict=True))

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore weights saved by `state_dict`.

        Raises:
            ValueError: other names or shapes.
        """
        own = self.named_parameters()
        shapes = {name: tensor.shape for name, tensor in own.items()}
        if shapes != {name: tensor.shape for name, tensor in state.items()}:
            differing = sorted(own.keys() ^ state.keys()) or "the same names with other shapes"
            raise ValueError(
                f"the saved teacher does not fit this model (differing: {differing}): resume with "
                "the model and the teacher_mode that the checkpoint was written with"
            )
        for name, tensor in own.items():
            tensor.copy_(state[name])
        self.weights.changed()


def build_teacher(model: nn.Module, config: SDPOConfig) -> SelfTeacher:
    """Make the teacher that the settings ask for, with the student's present weights.

    Raises:
        ConfigError: `lora_ema` for a model without PEFT adapters, or a quantized model without.
    """
    adapters = hasattr(model, "peft_config")
    if config.teacher_mode == "lora_ema" and not adapters:
        raise ConfigError(
            f"teacher_mode='lora_ema' needs a PEFT model, but this is a plain "
            f"{type(model).__name__}: wrap it with peft.get_peft_model or pass peft_config, or use "
            "teacher_mode='ema'"
        )
    quantized = any(getattr(model, f"is_loaded_in_{bits}bit", False) for bits in (4, 8))
    if quantized and not adapters:
        raise ConfigError(
            "the model is quantized and has no PEFT adapter, so nothing of it can be trained or "
            "averaged: pass peft_config (QLoRA), or load it unquantized"
        )
    if config.lora_average == "effective":
        return SelfTeacher(EffectiveWeights(model), config)
    if adapters:
        return SelfTeacher(AdapterWeights(model), config)
    weights = CopyWeights(model)
    _warn_if_stalling(weights.parameters(), config)
    return SelfTeacher(weights, config)


def at_rows_with_signal(batch: Batch, answer: Callable[[Batch], Tensor]) -> Tensor:
    """Answer the rows with a teacher prompt, at their places; the others get zeros.

    Without `self_distillation_mask` every row has one.
    """
    if "self_distillation_mask" not in batch or (batch["self_distillation_mask"] != 0).all():
        return answer(batch)
    mask = batch["self_distillation_mask"] != 0
    answers = answer(rows_with_signal(batch))
    rows = answers.new_zeros(len(mask), *answers.shape[1:])
    if mask.any():
        rows[mask] = answers
    return rows


def _warn_if_stalling(parameters: list[Tensor], config: SDPOConfig) -> None:
    """Warn if the average would stand still in the dtype of its weights."""
    rate, averaged = config.teacher_update_rate, config.teacher_regularization == "ema"
    for dtype in {parameter.dtype for parameter in parameters if averaged}:
        if ema_stalls(dtype, rate):
            warnings.warn(
                f"the teacher's weights are {dtype} and follow at rate {rate}: steps below a unit "
                "in the last place round away, so the teacher stays behind the student; load the "
                "model in float32 (with bf16=True for the computation)",
                TeacherWarning,
                stacklevel=3,
            )
