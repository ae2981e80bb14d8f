"""Evaluate the reference loss with parts exchanged: to stage values, or as a loss function."""

from collections.abc import Callable, Mapping
from copy import copy
from functools import lru_cache

import torch
from torch import Tensor

from sdpo.parity.cases.checked_call import checked_call, guarded, scalar_of
from sdpo.parity.cases.loss_case import LossCase
from sdpo.parity.faults.reference_parts import (
    FROM_LOGITS_ONLY,
    LossPart,
    LossParts,
    LossState,
    evaluate_log_probs,
    evaluate_logits,
    with_exchanged,
)
from sdpo.settings.config import SDPOConfig

_KEPT_STARTS = 256
"""Evaluations up to the log-probs that are cached, of cases of up to `_KEPT_LOGITS` logits."""
_KEPT_LOGITS = 1 << 16


def fault_trace(changes: LossParts, case: LossCase, *, gradient: bool = True) -> dict[str, Tensor]:
    """Evaluate the reference with some parts exchanged; without gradient at half the cost.

    Faults that lie behind the log-probs share these, and the graph to the logits.

    Returns:
        The stage values by name.

    Raises:
        BrokenGradientError: the fault leaves no graph to the student or reaches the teacher.
        CandidateError: the fault raises.
    """
    parts = with_exchanged(changes)
    before_log_probs = frozenset(
        (name, part) for name, part in changes.items() if name in FROM_LOGITS_ONLY
    )
    small = case.student_logits.numel() <= _KEPT_LOGITS
    evaluate_start = cached_start if small else _start
    state, start = guarded("aggregate", evaluate_start, case, before_log_probs)
    trace = dict(start)
    arguments = (copy(state), parts, trace)
    if gradient:
        leaves = (state.student_logits, state.teacher_logits)
        outputs = checked_call(evaluate_log_probs, {}, arguments, {}, leaves, keep_graph=True)
    else:
        with torch.no_grad():
            loss = guarded("aggregate", evaluate_log_probs, *arguments)
            outputs = {"aggregate": scalar_of(loss)}
    return {name: value.detach() for name, value in (trace | outputs).items()}


def loss_from_logits(changes: LossParts) -> Callable[..., Tensor]:
    """Make a loss function of logits: the reference with some parts exchanged."""
    parts = with_exchanged(changes)

    def faulty_loss(
        student_logits: Tensor,
        teacher_logits: Tensor,
        responses: Tensor,
        response_mask: Tensor,
        *,
        old_log_probs: Tensor | None = None,
        self_distillation_mask: Tensor | None = None,
        rollout_is_weights: Tensor | None = None,
        config: SDPOConfig,
    ) -> Tensor:
        state = LossState(
            config,
            student_logits,
            teacher_logits,
            responses,
            response_mask,
            old_log_probs,
            self_distillation_mask,
            rollout_is_weights,
        )
        evaluate_logits(state, parts, {})
        return evaluate_log_probs(state, parts, {})

    return faulty_loss


def loss_from_log_probs(changes: LossParts) -> Callable[..., Tensor]:
    """Make a loss function of log-probs: the reference with some parts exchanged."""
    parts = with_exchanged(changes)

    def faulty_loss(
        *,
        student_log_probs: Tensor,
        teacher_log_probs: Tensor,
        response_mask: Tensor,
        old_log_probs: Tensor | None = None,
        student_topk_log_probs: Tensor | None = None,
        teacher_topk_log_probs: Tensor | None = None,
        student_all_log_probs: Tensor | None = None,
        teacher_all_log_probs: Tensor | None = None,
        self_distillation_mask: Tensor | None = None,
        rollout_is_weights: Tensor | None = None,
        config: SDPOConfig,
    ) -> Tensor:
        no_logits = torch.empty(0)
        state = LossState(
            config,
            no_logits,
            no_logits,
            no_logits,
            response_mask,
            old_log_probs,
            self_distillation_mask,
            rollout_is_weights,
            from_log_probs=True,
        )
        state.student_log_probs, state.teacher_log_probs = student_log_probs, teacher_log_probs
        student, teacher = student_all_log_probs, teacher_all_log_probs
        if state.uses_topk:
            student, teacher = student_topk_log_probs, teacher_topk_log_probs
        if student is not None and teacher is not None:
            state.student_support, state.teacher_support = student, teacher
        return evaluate_log_probs(state, parts, {})

    return faulty_loss


def _start(
    case: LossCase, changes: frozenset[tuple[str, LossPart]]
) -> tuple[LossState, Mapping[str, Tensor]]:
    """Evaluate the parts from logits to log-probs, some of them exchanged: state and trace."""
    exchanged = dict(changes)
    state = LossState(
        case.config,
        case.student_logits.detach().clone().requires_grad_(True),
        case.teacher_logits.detach().clone().requires_grad_(True),
        case.responses,
        case.response_mask,
        case.old_log_probs,
        case.self_distillation_mask,
        case.rollout_is_weights,
        # the recorded choice among tied logits holds for the logits that it was made from
        None if "scaled_logits" in exchanged else case.recorded.get("support.indices"),
    )
    trace: dict[str, Tensor] = {}
    with torch.enable_grad():
        evaluate_logits(state, with_exchanged(exchanged), trace)
    return state, trace


cached_start = lru_cache(maxsize=_KEPT_STARTS)(_start)
