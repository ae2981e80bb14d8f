"""States of the loss with probabilities that one can compute with by hand, and faults on them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sdpo.parity.faults.catalogue import BY_ID
from sdpo.parity.faults.reference_parts import (
    LossState,
    evaluate_log_probs,
    evaluate_logits,
    with_exchanged,
)
from sdpo.settings.config import SDPOConfig

Rows = Sequence[Sequence[float]]


def logs(probabilities: Any) -> Tensor:
    """The logarithms of some numbers, in float64."""
    return torch.tensor(probabilities, dtype=torch.float64).log()


def one_row(student: Rows, teacher: Rows, responses: Sequence[int], **settings: Any) -> LossState:
    """One row of tokens, of which each side has these probabilities over the vocabulary."""
    options = {"is_clip": None, "alpha": 0.0, "distillation_topk": None} | settings
    return LossState(
        SDPOConfig(**options),
        logs([student]).requires_grad_(),
        logs([teacher]).requires_grad_(),
        torch.tensor([responses]),
        torch.ones(1, len(responses)),
    )


def on_support(student: Any, teacher: Any, **settings: Any) -> LossState:
    """Tokens of which each side has these probabilities on the support, and what precedes it."""
    options = {"is_clip": None, "alpha": 0.0, "distillation_topk": 2} | settings
    nothing = torch.empty(0)
    state = LossState(SDPOConfig(**options), nothing, nothing, nothing, nothing)
    state.student_support, state.teacher_support = logs(student), logs(teacher)
    return state


def value(fault: str, state: LossState) -> Any:
    """What the one part that a fault exchanges makes of a state."""
    (part,) = BY_ID[fault].parts.values()
    return part(state)


def trace_of(fault: str, state: LossState) -> dict[str, Tensor]:
    """The stage values of a whole evaluation with a fault, or with none, and the loss."""
    parts = with_exchanged(BY_ID[fault].parts if fault else {})
    trace: dict[str, Tensor] = {}
    evaluate_logits(state, parts, trace)
    trace["loss"] = evaluate_log_probs(state, parts, trace)
    return trace
