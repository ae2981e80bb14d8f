"""Small inputs of the fused loss, and its distance from the loss of the logits."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from sdpo.fused import lm_head, vocabulary_scan
from sdpo.fused.fused_loss import fused_self_distillation_loss
from sdpo.fused.lm_head import Head, Projection
from sdpo.loss.self_distillation import self_distillation_loss
from sdpo.settings.config import SDPOConfig
from sdpo.update.ema_teacher import trust_region_logits

EXACT = 1e-12
ROWS, TOKENS, HIDDEN, WIDTH = 3, 4, 6, 37
MODES = {
    "topk_tail": {"distillation_topk": 5},
    "topk_renorm": {"distillation_topk": 5, "distillation_add_tail": False},
    "topk_above_width": {"distillation_topk": 50},
    "full_vocab": {"distillation_topk": None},
    "sampled": {"full_logit_distillation": False, "alpha": 1.0},
}
PLACES = ("old_log_probs", "self_distillation_mask", "rollout_is_weights")


@pytest.fixture(autouse=True)
def narrow_blocks(monkeypatch):
    """Several blocks, the last one shorter, of several groups, the last one shorter too."""
    monkeypatch.setattr(lm_head, "BLOCK", 16)
    monkeypatch.setattr(vocabulary_scan, "GROUP", 4)


def config(mode: str, **settings_: Any) -> SDPOConfig:
    return SDPOConfig(**{"is_clip": 1.2, **settings_, **MODES[mode]})


@dataclass(frozen=True)
class Inputs:
    """One loss; `responses` and masks as for `self_distillation_loss`."""

    student: Projection
    teacher: Projection
    responses: Tensor
    response_mask: Tensor
    optional: dict[str, Any]
    live: Projection | None = None

    @property
    def leaves(self) -> list[Tensor]:
        hidden, head = self.student
        return [t for t in (hidden, head.weight, head.bias) if t is not None and t.requires_grad]


def inputs(
    *, bias: bool = True, scale: float = 0.5, softcap: float | None = None, width: int = WIDTH
) -> Inputs:
    random = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    def side() -> Projection:
        head = Head(numbers(width, HIDDEN), numbers(width) if bias else None, scale, softcap)
        return Projection(numbers(ROWS, TOKENS, HIDDEN), head)

    student, teacher, live = side(), side(), side()
    for leaf in (student.hidden, student.head.weight, student.head.bias):
        if leaf is not None:
            leaf.requires_grad_()
    return Inputs(
        student,
        teacher,
        torch.randint(0, width, (ROWS, TOKENS), generator=random),
        torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0]]),
        {
            "old_log_probs": numbers(ROWS, TOKENS) - 3,
            "self_distillation_mask": torch.tensor([1.0, 0.0, 1.0]),
            "rollout_is_weights": numbers(ROWS, TOKENS).abs(),
        },
        live,
    )


def whole_logits(side: Projection) -> Tensor:
    hidden, (weight, bias, scale, softcap) = side
    logits = (hidden @ weight.T + (0 if bias is None else bias)) * scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def plainly(on: Inputs, settings_: SDPOConfig) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Loss and gradients through all logits."""
    teacher = whole_logits(on.teacher)
    if settings_.teacher_regularization == "trust-region":
        assert on.live is not None
        teacher = trust_region_logits(teacher, whole_logits(on.live), settings_.teacher_update_rate)
    loss = self_distillation_loss(
        whole_logits(on.student),
        teacher,
        on.responses,
        on.response_mask,
        **on.optional,
        config=settings_,
    )
    return loss.detach(), torch.autograd.grad(loss, on.leaves)


def by_chunks(
    on: Inputs, settings_: SDPOConfig, chunk_tokens: int | None = 2
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Loss and gradients of the fused loss."""
    loss = fused_self_distillation_loss(
        on.student,
        on.teacher,
        on.responses,
        on.response_mask,
        **on.optional,
        live=on.live if settings_.teacher_regularization == "trust-region" else None,
        config=settings_,
        chunk_tokens=chunk_tokens,
    )
    return loss.detach(), torch.autograd.grad(loss, on.leaves)


def distance(on: Inputs, settings_: SDPOConfig, **arguments: int | None) -> float:
    """Largest difference between the two in loss and gradients, over the largest entry.

    NaN if any is: `max` of Python would pass it over.
    """
    (loss, gradients), (other, others) = (
        plainly(on, settings_),
        by_chunks(on, settings_, **arguments),
    )
    pairs = zip((loss, *gradients), (other, *others), strict=True)
    return torch.stack([(a - b).abs().max() / a.abs().max() for a, b in pairs]).max().item()
