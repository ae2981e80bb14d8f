"""Faults of the stage `tail`: the left-over mass, or renormalising."""

from collections.abc import Callable

import torch
from torch import Tensor

from sdpo.parity.faults.reference_parts import Fault, Pair, Part, Run, divergence
from sdpo.reference.loss import add_tail, renormalize

Sides = Callable[[Tensor], Tensor]


def untouched(run: Run) -> Pair:
    """Neither tail nor renormalisation."""
    return run.student_on, run.teacher_on


def clamped_sum(run: Run) -> Tensor:
    """The divergence, at least 0."""
    return divergence(run).clamp(min=0)


def on_each(with_tail: Sides, without_tail: Sides) -> Part:
    """One function of the log-probs for both sides; which one depends on the setting."""

    def complete(run: Run) -> Pair:
        function = with_tail if run.config.distillation_add_tail else without_tail
        return function(run.student_on), function(run.teacher_on)

    return complete


def on_tail(change: Callable[[Tensor, Tensor], Pair]) -> Part:
    """Both sides changed together where a tail is asked, renormalised elsewhere."""

    def complete(run: Run) -> Pair:
        if run.config.distillation_add_tail:
            return change(run.student_on, run.teacher_on)
        return renormalize(run.student_on), renormalize(run.teacher_on)

    return complete


def on_renormalized(change: Callable[[Tensor, Tensor], Pair]) -> Part:
    """Both sides changed together where renormalising is asked, tails elsewhere."""

    def complete(run: Run) -> Pair:
        if run.config.distillation_add_tail:
            return add_tail(run.student_on), add_tail(run.teacher_on)
        return change(run.student_on, run.teacher_on)

    return complete


def with_rest(log_probs: Tensor, log_rest: Tensor) -> Tensor:
    """Log-probs with a last entry."""
    return torch.cat([log_probs, log_rest], dim=-1)


def tail_without_limit(log_probs: Tensor) -> Tensor:
    """The tail of an unlimited mass."""
    log_mass = log_probs.logsumexp(-1, keepdim=True)
    return with_rest(log_probs, torch.log(-torch.expm1(log_mass)))


def tail_by_subtraction(log_probs: Tensor) -> Tensor:
    """The tail as log1p of minus the sum, unlimited."""
    return with_rest(log_probs, torch.log1p(-log_probs.exp().sum(-1, keepdim=True)))


def tail_with_limit(limit: float, gradient: str = "none") -> Sides:
    """The tail with another limit; `gradient` `passed` lets it through where the limit holds."""

    def complete(log_probs: Tensor) -> Tensor:
        log_mass = log_probs.logsumexp(-1, keepdim=True)
        limited = log_mass.clamp(max=-limit)
        if gradient == "passed":
            limited = limited.detach() + (log_mass - log_mass.detach())
        return with_rest(log_probs, torch.log(-torch.expm1(limited)))

    return complete


def tail_without_gradient(log_probs: Tensor) -> Tensor:
    """The tail without gradient."""
    return with_rest(log_probs, add_tail(log_probs)[..., -1:].detach())


def one_tail(student: Tensor, teacher: Tensor) -> Pair:
    """The student's tail on both sides."""
    student = add_tail(student)
    return student, with_rest(teacher, student[..., -1:].detach())


def closed_tail(log_probs: Tensor) -> Tensor:
    """A tail after renormalising: what is left is the limit."""
    return add_tail(renormalize(log_probs))


TAIL = (
    Fault(
        "M05",
        "top-k without renormalisation or tail, clamped at 0",
        "tail",
        "tail",
        "verl #7856",
        {"tail": untouched, "divergence": clamped_sum},
    ),
    Fault(
        "M06",
        "tail without its limit",
        "tail",
        "tail",
        "CLaaS #1",
        {"tail": on_each(tail_without_limit, renormalize)},
        inactive="shows only where the tail is below 1e-7",
    ),
    Fault(
        "M06b",
        "tail by log1p(-sum), without its limit",
        "tail",
        "tail",
        "CLaaS #1",
        {"tail": on_each(tail_by_subtraction, renormalize)},
        inactive="shows only where the tail is below 1e-7",
    ),
    Fault(
        "M46",
        "limit of the tail at 1e-3",
        "tail",
        "tail",
        "design",
        {"tail": on_each(tail_with_limit(1e-3), renormalize)},
    ),
    Fault(
        "M47",
        "tail on the student only",
        "tail",
        "tail",
        "design",
        {"tail": on_tail(lambda s, t: (add_tail(s), closed_tail(t)))},
    ),
    Fault(
        "M48",
        "tail on the teacher only",
        "tail",
        "tail",
        "design",
        {"tail": on_tail(lambda s, t: (closed_tail(s), add_tail(t)))},
    ),
    Fault(
        "M49",
        "tail after renormalising",
        "tail",
        "tail",
        "design",
        {"tail": on_each(closed_tail, renormalize)},
    ),
    Fault(
        "M50",
        "renormalised instead of a tail",
        "tail",
        "tail",
        "design",
        {"tail": on_each(renormalize, renormalize)},
    ),
    Fault(
        "M51",
        "tail instead of renormalising",
        "tail",
        "tail",
        "design",
        {"tail": on_each(add_tail, add_tail)},
    ),
    Fault(
        "M52",
        "student's tail on both sides",
        "tail",
        "tail",
        "design",
        {"tail": on_tail(one_tail)},
    ),
    Fault(
        "M53",
        "teacher not renormalised",
        "tail",
        "tail",
        "design",
        {"tail": on_renormalized(lambda s, t: (renormalize(s), t))},
    ),
    Fault(
        "M54",
        "student not renormalised",
        "tail",
        "tail",
        "design",
        {"tail": on_renormalized(lambda s, t: (s, renormalize(t)))},
    ),
)

GRADIENT = (
    Fault(
        "M99",
        "stop-gradient on the tail",
        "gradient",
        "gradient",
        "design",
        {"tail": on_each(tail_without_gradient, renormalize)},
    ),
    Fault(
        "M100",
        "gradient passes the tail's limit",
        "gradient",
        "gradient",
        "design",
        {"tail": on_each(tail_with_limit(1e-7, "passed"), renormalize)},
        inactive="shows only where the tail is below 1e-7",
    ),
)
