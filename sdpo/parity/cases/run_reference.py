"""The one driver of the reference's actor update, and what it computed as a `StageTrace`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sdpo.parity.cases.stage_trace import GRAD_NORM, NO_STAGE, Moment, StageTrace
from sdpo.parity.cases.value_names import by_our_names
from sdpo.reference.forward import logit_outputs
from sdpo.reference.hooks import Hooks
from sdpo.reference.update import Actor, TrustRegionTeacher, UpdateSettings

Groups = Sequence[Sequence[Sequence[int]]]
"""Rows of each micro-batch of each optimizer step of an update."""


class TraceHooks(Hooks):
    """Copies the values, gradients and weights of the reference's updates into `trace`."""

    def __init__(self) -> None:
        self.trace = StageTrace()
        self.at = Moment()

    def values(self, step: int, micro_batch: int, values: Mapping[str, Tensor]) -> None:
        """Copy a micro-batch's values."""
        self.at = Moment(self.at.update, step, micro_batch)
        self.trace.put(self.at, copied(by_our_names(values)))

    def before_step(self, step: int, actor: nn.Module) -> None:
        """Copy the gradients."""
        named = actor.named_parameters()
        gradient = {name: p.grad for name, p in named if p.grad is not None}
        self.trace.put(self.at, copied(gradient), "accumulate")

    def after_step(self, step: int, actor: nn.Module, norm: float) -> None:
        """Keep the norm."""
        self.trace.put(self.at, {GRAD_NORM: norm}, NO_STAGE)

    def after_update(self, actor: nn.Module, teacher: nn.Module | None) -> None:
        """Copy the weights of both, and go on to the next update."""
        self.trace.put(self.at, copied(actor.state_dict()), "optimizer")
        if teacher is not None:
            self.trace.put(self.at, copied(teacher.state_dict()), "teacher_update")
        self.at = Moment(self.at.update + 1)


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies without a graph."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def run_reference_updates(
    student: nn.Module,
    teacher: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    settings: UpdateSettings,
    temperature: float,
    batches: Iterable[tuple[Mapping[str, Tensor], Groups | None]],
    *,
    hooks: Hooks,
    outputs: Callable[..., dict[str, Tensor]] = logit_outputs,
) -> list[dict[str, Any]]:
    """Let the reference learn from some batches; changes student, teacher and optimizer.

    Args:
        student: trained.
        teacher: averaged, or of a trust region the frozen reference; None lets the student teach.
        optimizer: over the student's parameters.
        settings: the reference's.
        temperature: of both sides' logits.
        batches: one for each update, made when the update before it is done, with the rows of each
            micro-batch of a dynamic batch.
        hooks: see and add to what happens.
        outputs: computes log-probs from logits, as `logit_outputs`.

    Returns:
        The reference's metrics of each update.
    """
    trust_region = settings.teacher_regularization == "trust-region"
    # a teacher that is the student stays, so that the actor refuses it
    if trust_region and teacher is not None and teacher is not student:
        teacher = TrustRegionTeacher(teacher, student, settings.teacher_update_rate)
    actor = Actor(student, optimizer, settings, teacher, hooks, outputs)
    return [actor.update_policy(dict(batch), temperature, groups) for batch, groups in batches]


def in_dtype(batch: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """A batch with its floating tensors in one dtype."""
    return {n: t.to(dtype) if t.is_floating_point() else t for n, t in batch.items()}
