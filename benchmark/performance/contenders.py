"""Computes a loss from hidden states in the way of each contender, on the same tensors.

`projections` is the floor: the four products that every method needs (student and teacher forward,
gradients of hidden states and weight), with nothing between them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from sdpo.settings.config import SDPOConfig

TEMPERATURE, ALPHA = 1.0, 0.5
FLOOR_LOGITS = {"cpu": 2**28, "cuda": 2**31}
"""Entries of logits that the floor holds at once: no more than it takes to run at full speed."""


@dataclass(frozen=True)
class LossShape:
    """Gives the size of one loss; a share of `active` of the rows has a teacher's prompt."""

    vocabulary: int
    hidden: int
    topk: int
    tokens: int
    active: float
    device: str = "cpu"
    dtype: str = "float32"


class LossArguments(TypedDict):
    """Holds masks and configuration as our functions take them."""

    responses: Tensor
    response_mask: Tensor
    self_distillation_mask: Tensor
    config: SDPOConfig


@dataclass(frozen=True)
class LossTensors:
    """Holds hidden states `(B, T, H)` of student and teacher under one head, and masks."""

    student: Tensor
    teacher: Tensor
    weight: Tensor
    responses: Tensor
    response_mask: Tensor
    self_distillation_mask: Tensor
    topk: int

    def logits(self) -> tuple[Tensor, Tensor]:
        """Compute all logits of both sides, the teacher's without gradient."""
        with torch.no_grad():
            teacher = self.teacher @ self.weight.T
        return self.student @ self.weight.T, teacher

    def arguments(self) -> LossArguments:
        """Give masks and configuration to our functions."""
        return LossArguments(
            responses=self.responses,
            response_mask=self.response_mask,
            self_distillation_mask=self.self_distillation_mask,
            config=SDPOConfig(
                alpha=ALPHA, distillation_topk=self.topk, is_clip=None, temperature=TEMPERATURE
            ),
        )


def random_tensors(shape: LossShape) -> LossTensors:
    """Draw the same random numbers for the same shape, in up to eight rows."""
    random = torch.Generator().manual_seed(0)
    rows = min(8, shape.tokens)
    size = (rows, shape.tokens // rows, shape.hidden)
    student = torch.randn(size, generator=random)
    weight = torch.empty(shape.vocabulary, shape.hidden).normal_(0, 0.1, generator=random)
    teacher = student + 0.3 * torch.randn(size, generator=random)
    responses = torch.randint(0, shape.vocabulary, size[:2], generator=random)
    student, teacher, weight = (
        tensor.to(shape.device, getattr(torch, shape.dtype))
        for tensor in (student, teacher, weight)
    )
    active = (torch.arange(rows) < round(rows * shape.active)).float()
    return LossTensors(
        student.requires_grad_(),
        teacher,
        weight.requires_grad_(),
        responses.to(shape.device),
        torch.ones(size[:2], device=shape.device),
        active.to(shape.device),
        shape.topk,
    )


def projections(tensors: LossTensors) -> None:
    """Compute the four products alone, at most `FLOOR_LOGITS` at a time."""
    weight = tensors.weight.detach()
    student, teacher = tensors.student.detach().flatten(0, 1), tensors.teacher.flatten(0, 1)
    by_hidden, by_weight = torch.empty_like(student), torch.zeros_like(weight)
    size = min(len(student), FLOOR_LOGITS[weight.device.type] // len(weight))
    logits = weight.new_empty(size, len(weight))
    for start in range(0, len(student), size):
        rows = slice(start, start + size)
        row_logits = logits[: len(student[rows])]
        torch.mm(teacher[rows], weight.T, out=row_logits)
        torch.mm(student[rows], weight.T, out=row_logits)
        torch.mm(row_logits, weight, out=by_hidden[rows])
        by_weight.addmm_(row_logits.T, student[rows])


def fused(tensors: LossTensors) -> Tensor:
    """Call `sdpo.fused.fused_loss`."""
    from sdpo.fused.fused_loss import fused_self_distillation_loss
    from sdpo.fused.lm_head import Head, Projection

    head = Head(tensors.weight)
    student, teacher = Projection(tensors.student, head), Projection(tensors.teacher, head)
    return fused_self_distillation_loss(student, teacher, **tensors.arguments())


def unfused(tensors: LossTensors) -> Tensor:
    """Call `sdpo.loss.self_distillation`."""
    from sdpo.loss.self_distillation import self_distillation_loss

    return self_distillation_loss(*tensors.logits(), **tensors.arguments())


def transcription(tensors: LossTensors) -> Tensor:
    """Call the transcription of the reference."""
    from sdpo.reference.loss import loss_from_logits

    return loss_from_logits(
        *tensors.logits(),
        tensors.responses,
        tensors.response_mask,
        temperature=TEMPERATURE,
        distillation_topk=tensors.topk,
        alpha=ALPHA,
        distillation_add_tail=True,
        is_clip=None,
        self_distillation_mask=tensors.self_distillation_mask,
    )


def sdpo_rl(tensors: LossTensors) -> Tensor:
    """Call `sdpo-rl` in the order of its trainer; it knows no temperature."""
    from sdpo_rl.distillation import (  # pyright: ignore[reportMissingImports]
        compute_self_distillation_loss,
    )

    response = tensors.responses.unsqueeze(-1)
    student_logits = tensors.student @ tensors.weight.T  # as its trainer: logits of both sides
    student = student_logits.log_softmax(-1)
    student_topk, indices = student.topk(tensors.topk, dim=-1)
    with torch.no_grad():
        teacher_logits = tensors.teacher @ tensors.weight.T
        teacher = teacher_logits.log_softmax(-1)
        teacher_topk = teacher.gather(-1, indices)
    loss, _ = compute_self_distillation_loss(
        student_topk_log_probs=student_topk,
        teacher_topk_log_probs=teacher_topk,
        student_log_probs=student.gather(-1, response).squeeze(-1),
        teacher_log_probs=teacher.gather(-1, response).squeeze(-1),
        response_mask=tensors.response_mask,
        self_distillation_mask=tensors.self_distillation_mask,
        alpha=ALPHA,
        is_clip=None,
    )
    return loss


def trl(tensors: LossTensors) -> Tensor:
    """Call TRL's experimental SDPO on logits over temperature, as its trainer does."""
    from trl.experimental.sdpo.loss_utils import compute_topk_self_distillation_loss

    student, teacher = tensors.logits()
    per_token = compute_topk_self_distillation_loss(
        student / TEMPERATURE,
        teacher / TEMPERATURE,
        distillation_topk=tensors.topk,
        distillation_alpha=ALPHA,
        distillation_add_tail=True,
    )
    mask = tensors.response_mask * tensors.self_distillation_mask.unsqueeze(-1)
    return (per_token * mask).sum() / mask.sum()


CONTENDERS: dict[str, Callable[[LossTensors], Tensor | None]] = {
    "projections": projections,
    "fused": fused,
    "sdpo.loss.self_distillation": unfused,
    "reference": transcription,
    "sdpo-rl": sdpo_rl,
    "trl": trl,
}
PEERS = ("sdpo-rl", "trl")
