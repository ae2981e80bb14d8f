"""How far a loss's gradient is from the reference's, setting by setting, on one batch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sdpo.parity.cases.loss_case import LossCase, transcription_trace
from sdpo.parity.cases.tensor_distances import match
from sdpo.settings.config import SDPOConfig

_SHAPE = (4, 32, 512)
_MODES: dict[str, dict[str, object]] = {
    "full vocabulary": {"distillation_topk": None},
    "top-100, renormalised": {"distillation_topk": 100, "distillation_add_tail": False},
    "top-8, renormalised": {"distillation_topk": 8, "distillation_add_tail": False},
    "top-100 with a tail": {"distillation_topk": 100},
    "top-8 with a tail": {"distillation_topk": 8},
    "sampled tokens": {"full_logit_distillation": False},
}
_POINTS = ((0.0, 1.0), (0.5, 1.0), (1.0, 1.0), (0.5, 0.7))
_SAMPLED_POINTS = ((1.0, 1.0), (1.0, 0.7))
"""Pairs of alpha and temperature."""


@dataclass(frozen=True)
class Effect:
    """A gradient beside the reference's: ratio of norms, cosine, distance ÷ the reference's norm.

    `loss` is the loss ÷ the reference's.
    """

    settings: str
    loss: float
    norm: float
    cosine: float
    distance: float


def effects_of(function: Callable[..., Tensor]) -> Iterator[Effect]:
    """Call a loss from logits at each setting that it has; those that it refuses are left out."""
    for mode, values in _MODES.items():
        for alpha, temperature in _SAMPLED_POINTS if mode == "sampled tokens" else _POINTS:
            settings = {"is_clip": None, **values, "alpha": alpha, "temperature": temperature}
            case = _batch(SDPOConfig.from_dict(settings))
            try:
                loss, gradient = _called(function, case)
            except NotImplementedError:
                continue
            heat = "" if temperature == 1.0 else f", temperature {temperature}"
            yield _effect(f"{mode}, alpha {alpha:g}{heat}", case, loss, gradient)


def _batch(config: SDPOConfig) -> LossCase:
    """Four rows of 8 to 32 tokens, a teacher that disagrees, logits as far apart as a model's."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(_SHAPE, generator=generator) * 3
    lengths = torch.tensor([32, 24, 16, 8]).unsqueeze(1)
    return LossCase(
        id="effects",
        config=config,
        student_logits=student,
        teacher_logits=student + torch.randn(_SHAPE, generator=generator),
        responses=student.softmax(-1)
        .flatten(0, 1)
        .multinomial(1, generator=generator)
        .view(_SHAPE[:2]),
        response_mask=(torch.arange(_SHAPE[1]) < lengths).long(),
    )


def _called(function: Callable[..., Tensor], case: LossCase) -> tuple[Tensor, Tensor]:
    """The loss and its gradient by the student's logits."""
    leaf = case.student_logits.clone().requires_grad_(True)
    loss = function(
        leaf, case.teacher_logits, case.responses, case.response_mask, config=case.config
    )
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient


def _effect(settings: str, case: LossCase, loss: Tensor, gradient: Tensor) -> Effect:
    """Compare with the transcription."""
    expected = transcription_trace(case)
    right = expected["gradient"]
    apart = match({"logits": gradient}, {"logits": right})
    return Effect(
        settings,
        (loss / expected["aggregate"]).item(),
        (gradient.norm() / right.norm()).item(),
        apart.cosine,
        apart.distance,
    )
