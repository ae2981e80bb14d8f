"""Loss cases through the fused loss: with the identity as head, hidden states are logits.

Products with 0 and 1 are exact, so that the oracle's budgets hold without an allowance for the
head. Infinite logits cannot be expressed: infinity times 0 is not a number.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from sdpo.fused.fused_loss import fused_self_distillation_loss
from sdpo.fused.lm_head import Head, Projection
from sdpo.parity.cases.loss_case import LossCase


def fused_trace(case: LossCase, chunk_tokens: int | None = None) -> Mapping[str, Tensor]:
    """Stage values of the fused loss on a loss case, gradient included."""
    head = Head(torch.eye(case.student_logits.shape[-1], dtype=case.dtype))
    leaf = case.student_logits.detach().clone().requires_grad_(True)
    values: dict[str, Tensor] = {}
    loss = fused_self_distillation_loss(
        Projection(leaf, head),
        Projection(case.teacher_logits, head),
        case.responses,
        case.response_mask,
        old_log_probs=case.old_log_probs,
        self_distillation_mask=case.self_distillation_mask,
        rollout_is_weights=case.rollout_is_weights,
        config=case.config,
        chunk_tokens=chunk_tokens,
        trace=values,
    )
    (values["gradient"],) = torch.autograd.grad(loss, leaf)
    return values
