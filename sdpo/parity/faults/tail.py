"""Faults of the stage `tail`: the left-over mass, or renormalising."""

from collections.abc import Callable

import torch
from torch import Tensor

from sdpo.parity.faults.reference_parts import FaultParts, LossPart, LossState, Pair, divergence
from sdpo.reference.loss import add_tail, renormalize

Complete = Callable[[Tensor], Tensor]
"""From one side's log-probs on the support to the completed ones."""


def untouched(state: LossState) -> Pair:
    """Neither add a tail nor renormalise."""
    return state.student_support, state.teacher_support


def _clamped_sum(state: LossState) -> Tensor:
    """Compute the divergence, at least 0."""
    return divergence(state).clamp(min=0)


def each_side_by(with_tail: Complete, without_tail: Complete) -> LossPart:
    """Complete both sides by one function; which one depends on the setting."""

    def complete(state: LossState) -> Pair:
        function = with_tail if state.config.distillation_add_tail else without_tail
        return function(state.student_support), function(state.teacher_support)

    return complete


def _where_a_tail_is_asked(change: Callable[[Tensor, Tensor], Pair]) -> LossPart:
    """Change both sides together where a tail is asked, renormalise them elsewhere."""

    def complete(state: LossState) -> Pair:
        if state.config.distillation_add_tail:
            return change(state.student_support, state.teacher_support)
        return renormalize(state.student_support), renormalize(state.teacher_support)

    return complete


def _where_no_tail_is_asked(change: Callable[[Tensor, Tensor], Pair]) -> LossPart:
    """Change both sides together where renormalising is asked, add tails elsewhere."""

    def complete(state: LossState) -> Pair:
        if state.config.distillation_add_tail:
            return add_tail(state.student_support), add_tail(state.teacher_support)
        return change(state.student_support, state.teacher_support)

    return complete


def with_tail_entry(log_probs: Tensor, log_tail: Tensor) -> Tensor:
    """Append the tail to log-probs."""
    return torch.cat([log_probs, log_tail], dim=-1)


def _tail_without_limit(log_probs: Tensor) -> Tensor:
    """Add the tail of an unlimited mass."""
    log_mass = log_probs.logsumexp(-1, keepdim=True)
    return with_tail_entry(log_probs, torch.log(-torch.expm1(log_mass)))


def _tail_by_subtraction(log_probs: Tensor) -> Tensor:
    """Add the tail as log1p of minus the sum, unlimited."""
    return with_tail_entry(log_probs, torch.log1p(-log_probs.exp().sum(-1, keepdim=True)))


def tail_with_limit(limit: float, *, gradient_passes: bool = False) -> Complete:
    """Add the tail with another limit, which may let the gradient through where it acts."""

    def complete(log_probs: Tensor) -> Tensor:
        log_mass = log_probs.logsumexp(-1, keepdim=True)
        limited = log_mass.clamp(max=-limit)
        if gradient_passes:
            limited = limited.detach() + (log_mass - log_mass.detach())
        return with_tail_entry(log_probs, torch.log(-torch.expm1(limited)))

    return complete


def _students_tail_on_both(student: Tensor, teacher: Tensor) -> Pair:
    """Add the student's tail on both sides."""
    student = add_tail(student)
    return student, with_tail_entry(teacher, student[..., -1:].detach())


def _tail_after_renormalising(log_probs: Tensor) -> Tensor:
    """Add a tail after renormalising: what is left is the limit."""
    return add_tail(renormalize(log_probs))


def _identity(log_probs: Tensor) -> Tensor:
    """Leave the log-probs as they are."""
    return log_probs


def _renormalized_by_probabilities(log_probs: Tensor) -> Tensor:
    """Rescale by the log of a sum of probabilities, which may all be zero in the dtype."""
    return log_probs - log_probs.exp().sum(-1, keepdim=True).log()


FAULTS: FaultParts = {
    "M05": {"tail": untouched, "divergence": _clamped_sum},
    "M05b": {"tail": each_side_by(_identity, renormalize)},
    "M06": {"tail": each_side_by(_tail_without_limit, renormalize)},
    "M06b": {"tail": each_side_by(_tail_by_subtraction, renormalize)},
    "M46": {"tail": each_side_by(tail_with_limit(1e-3), renormalize)},
    "M47": {
        "tail": _where_a_tail_is_asked(lambda s, t: (add_tail(s), _tail_after_renormalising(t)))
    },
    "M48": {
        "tail": _where_a_tail_is_asked(lambda s, t: (_tail_after_renormalising(s), add_tail(t)))
    },
    "M49": {"tail": each_side_by(_tail_after_renormalising, renormalize)},
    "M50": {"tail": each_side_by(renormalize, renormalize)},
    "M51": {"tail": each_side_by(add_tail, add_tail)},
    "M52": {"tail": _where_a_tail_is_asked(_students_tail_on_both)},
    "M53": {"tail": _where_no_tail_is_asked(lambda s, t: (renormalize(s), t))},
    "M54": {"tail": _where_no_tail_is_asked(lambda s, t: (s, renormalize(t)))},
    "M118": {"tail": each_side_by(tail_with_limit(1e-6), renormalize)},
    "M119": {"tail": each_side_by(tail_with_limit(1e-8), renormalize)},
    "M120": {"tail": each_side_by(add_tail, _renormalized_by_probabilities)},
}
