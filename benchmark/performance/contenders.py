"""The contenders of the loss benchmark: from hidden states to a loss, on the same tensors.

`projections` is the floor: the four products that every method needs (student and teacher forward,
gradients of hidden states and weight), with nothing between them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sdpo.settings.config import SDPOConfig

TEMPERATURE, ALPHA = 1.0, 0.5
FLOOR_LOGITS = {"cpu": 2**28, "cuda": 2**31}
"""Entries of logits that the floor holds at once: no more than it takes to run at full speed."""
Inputs = dict[str, Any]


def inputs(
    *,
    vocabulary: int,
    hidden: int,
    tokens: int,
    active: float,
    topk: int,
    device: str = "cpu",
    dtype: str = "float32",
) -> Inputs:
    """Random hidden states of student and teacher under one head; `active` of 8 rows count."""
    random = torch.Generator().manual_seed(0)
    rows = min(8, tokens)
    shape = (rows, tokens // rows, hidden)
    student = torch.randn(shape, generator=random)
    weight = torch.empty(vocabulary, hidden).normal_(0, 0.1, generator=random)
    teacher = student + 0.3 * torch.randn(shape, generator=random)
    floating = {"student": student, "teacher": teacher, "weight": weight}
    on = {key: t.to(device, getattr(torch, dtype)) for key, t in floating.items()}
    for key in ("student", "weight"):
        on[key].requires_grad_()
    exact = {
        "responses": torch.randint(0, vocabulary, shape[:2], generator=random),
        "response_mask": torch.ones(shape[:2]),
        "self_distillation_mask": (torch.arange(rows) < round(rows * active)).float(),
    }
    return on | {key: t.to(device) for key, t in exact.items()} | {"topk": topk}


def settings(on: Inputs) -> dict[str, Any]:
    """Masks and configuration as our functions take them."""
    config = SDPOConfig(
        alpha=ALPHA, distillation_topk=on["topk"], is_clip=None, temperature=TEMPERATURE
    )
    names = ("responses", "response_mask", "self_distillation_mask")
    return {**{name: on[name] for name in names}, "config": config}


def logits(on: Inputs) -> tuple[Tensor, Tensor]:
    """All logits of both sides, the teacher's without gradient."""
    with torch.no_grad():
        teacher = on["teacher"] @ on["weight"].T
    return on["student"] @ on["weight"].T, teacher


def projections(on: Inputs) -> None:
    """The four products alone, at most `FLOOR_LOGITS` at a time."""
    weight = on["weight"].detach()
    student, teacher = on["student"].detach().flatten(0, 1), on["teacher"].flatten(0, 1)
    by_hidden, by_weight = torch.empty_like(student), torch.zeros_like(weight)
    size = min(len(student), FLOOR_LOGITS[weight.device.type] // len(weight))
    logits = weight.new_empty(size, len(weight))
    for start in range(0, len(student), size):
        rows = slice(start, start + size)
        found = logits[: len(student[rows])]
        torch.mm(teacher[rows], weight.T, out=found)
        torch.mm(student[rows], weight.T, out=found)
        torch.mm(found, weight, out=by_hidden[rows])
        by_weight.addmm_(found.T, student[rows])


def fused(on: Inputs) -> Tensor:
    """`sdpo.fused.fused_loss`."""
    from sdpo.fused.fused_loss import fused_self_distillation_loss
    from sdpo.fused.lm_head import Head, Projection

    head = Head(on["weight"])
    student, teacher = Projection(on["student"], head), Projection(on["teacher"], head)
    return fused_self_distillation_loss(student, teacher, **settings(on))


def unfused(on: Inputs) -> Tensor:
    """`sdpo.loss.self_distillation`."""
    from sdpo.loss.self_distillation import self_distillation_loss

    return self_distillation_loss(*logits(on), **settings(on))


def transcription(on: Inputs) -> Tensor:
    """The transcription of the reference."""
    from sdpo.reference.loss import loss_from_logits

    return loss_from_logits(
        *logits(on),
        on["responses"],
        on["response_mask"],
        temperature=TEMPERATURE,
        distillation_topk=on["topk"],
        alpha=ALPHA,
        distillation_add_tail=True,
        is_clip=None,
        self_distillation_mask=on["self_distillation_mask"],
    )


def sdpo_rl(on: Inputs) -> Tensor:
    """`sdpo-rl`, in the order of its trainer; it knows no temperature."""
    from sdpo_rl.distillation import (  # pyright: ignore[reportMissingImports]
        compute_self_distillation_loss,
    )

    response = on["responses"].unsqueeze(-1)
    student_logits = on["student"] @ on["weight"].T  # its trainer, too, holds both sides' logits
    student = student_logits.log_softmax(-1)
    student_topk, indices = student.topk(on["topk"], dim=-1)
    with torch.no_grad():
        teacher_logits = on["teacher"] @ on["weight"].T
        teacher = teacher_logits.log_softmax(-1)
        teacher_topk = teacher.gather(-1, indices)
    loss, _ = compute_self_distillation_loss(
        student_topk_log_probs=student_topk,
        teacher_topk_log_probs=teacher_topk,
        student_log_probs=student.gather(-1, response).squeeze(-1),
        teacher_log_probs=teacher.gather(-1, response).squeeze(-1),
        response_mask=on["response_mask"],
        self_distillation_mask=on["self_distillation_mask"],
        alpha=ALPHA,
        is_clip=None,
    )
    return loss


def trl(on: Inputs) -> Tensor:
    """TRL's experimental SDPO; as its trainer, it divides the logits by the temperature."""
    from trl.experimental.sdpo.loss_utils import compute_topk_self_distillation_loss

    student, teacher = logits(on)
    per_token = compute_topk_self_distillation_loss(
        student / TEMPERATURE,
        teacher / TEMPERATURE,
        distillation_topk=on["topk"],
        distillation_alpha=ALPHA,
        distillation_add_tail=True,
    )
    mask = on["response_mask"] * on["self_distillation_mask"].unsqueeze(-1)
    return (per_token * mask).sum() / mask.sum()


CONTENDERS: dict[str, Callable[[Inputs], Tensor | None]] = {
    "projections": projections,
    "fused": fused,
    "sdpo.loss.self_distillation": unfused,
    "reference": transcription,
    "sdpo-rl": sdpo_rl,
    "trl": trl,
}
PEERS = ("sdpo-rl", "trl")
