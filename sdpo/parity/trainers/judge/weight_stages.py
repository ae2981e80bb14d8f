"""Accumulated gradient, optimizer and teacher, each from the trainer's own values before it.

Budgets are measured as those of the forward passes: float32 beside float64.
"""

import copy
import math
from collections.abc import Sequence

import torch
from torch import nn

from sdpo.fixtures.models import build_optimizer
from sdpo.parity.cases.checked_call import same_bits
from sdpo.parity.compare.comparison import Comparison
from sdpo.parity.compare.statuses import Status
from sdpo.parity.recorded.measured_budgets import compare_all_measured
from sdpo.parity.trainers.judge.forward_stages import TwoPrecisions, logits_of
from sdpo.parity.trainers.scenarios.scenario import Scenario
from sdpo.parity.trainers.scenarios.training_record import OptimizerStep, Tensors

_Side = tuple[dict[str, nn.Parameter], torch.optim.Optimizer]


def merged(model: nn.Module) -> nn.Module:
    """Copy a PEFT model as a plain one, with the adapter's effect in the weights."""
    return copy.deepcopy(model).merge_and_unload()  # type: ignore[operator]


def compare_gradient(
    scenario: Scenario, student: TwoPrecisions, step: OptimizerStep, scales: Sequence[float]
) -> list[Comparison]:
    """Compare the parameters' gradient with the sum over the trainer's micro-batches.

    `scales` are those that the trainer put on its micro-batches, NaN where there is no gradient;
    in the sum each micro-batch has the right one.
    """
    low = getattr(torch, scenario.dtype)
    expected = _backward(scenario, student.single, step, scales, low)
    truth = _backward(scenario, student.double, step, scales, torch.float32)
    missing = [name for name in expected if name not in step.gradient]
    if missing:
        note = f"{len(missing)} gradients are missing, the first of {missing[0]}"
        return [Comparison("accumulate", Status.ERROR, scenario.id, note=note)]
    return compare_all_measured("accumulate", scenario.id, expected, truth, step.gradient)


def _backward(
    scenario: Scenario,
    module: nn.Module,
    step: OptimizerStep,
    scales: Sequence[float],
    autocast: torch.dtype,
) -> Tensors:
    """Backpropagate the logits' gradients of an optimizer step, and take those of the parameters.

    Args:
        scenario: the settings.
        module: the student at the step's weights.
        step: the micro-batches, with the gradient at the student's logits.
        scales: those that the trainer put on its micro-batches, NaN where there is no gradient.
        autocast: dtype of the forward passes.

    Returns:
        The mean over processes of the sums over micro-batches, by the parameter's name.
    """
    module.zero_grad()
    for micro_batch, scale in zip(step.micro_batches, scales, strict=True):
        logits = logits_of(module, micro_batch, "student", autocast)
        usual = 1 / scenario.accumulation
        weight = (usual / scale if math.isfinite(scale) else 1.0) / scenario.processes
        gradient = micro_batch.logits["gradient"].to(logits.dtype) * weight
        logits.backward(gradient)
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in module.named_parameters()
        if p.requires_grad
    }


class ReferenceOptimizer:
    """Clips and steps as the reference does, from the trainer's gradients, in both precisions."""

    def __init__(self, scenario: Scenario, initial: Tensors):
        self.scenario = scenario
        self.sides = [self._side(initial, dtype) for dtype in (torch.float32, torch.float64)]
        self.previous = self.sides[0]

    def _side(self, initial: Tensors, dtype: torch.dtype) -> _Side:
        """Make parameters and their optimizer in one precision."""
        parameters = {
            name: nn.Parameter(value.detach().to(dtype, copy=True))
            for name, value in initial.items()
        }
        return parameters, build_optimizer(dict(self.scenario.optimizer), parameters.values())

    def step(self, before: Tensors, gradient: Tensors) -> tuple[Tensors, Tensors, float]:
        """Step from `before`: weights in float32 and in float64, and the norm of the gradient."""
        self.previous = copy.deepcopy(self.sides[0])
        limit, norm = self.scenario.grad_clip, math.nan
        for side in self.sides:
            norm = _one_step(side, before, gradient, limit)
        after = [{n: p.detach().clone() for n, p in side[0].items()} for side in self.sides]
        return after[0], after[1], norm

    def with_fault(self, before: Tensors, gradient: Tensors, fault: str) -> Tensors:
        """Take the last step again, with a fault of the catalogue.

        `M113` steps although the gradient is not finite, `M114` does not clip.
        """
        side = copy.deepcopy(self.previous)
        limit = math.inf if fault == "M114" else self.scenario.grad_clip
        _one_step(side, before, gradient, limit, skip=fault != "M113")
        return {name: parameter.detach() for name, parameter in side[0].items()}


def _one_step(
    side: _Side, before: Tensors, gradient: Tensors, limit: float, *, skip: bool = True
) -> float:
    """Set weights and gradients, clip, step unless the norm is not finite; returns the norm."""
    parameters, optimizer = side
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(before[name])
            parameter.grad = gradient[name].detach().to(parameter.dtype, copy=True)
    norm = nn.utils.clip_grad_norm_(parameters.values(), limit).item()
    if math.isfinite(norm) or not skip:
        optimizer.step()
    return norm


def compare_start(scenario: Scenario, teacher: Tensors, student: Tensors) -> list[Comparison]:
    """Compare the teacher before the first update with the student, at which it starts."""
    apart = [n for n in teacher if n in student and not same_bits(teacher[n], student[n])]
    if not apart:
        return []
    note = f"the teacher does not start at the student: {len(apart)} weights, first {apart[0]}"
    distance = max((teacher[n] - student[n]).abs().max().item() for n in apart)
    compared = sum(value.numel() for value in teacher.values())
    stage, effect = "teacher_update", "value"
    return [
        Comparison(
            stage, Status.DIVERGENT, scenario.id, compared, distance, note=note, effect=effect
        )
    ]


def compare_teacher(
    scenario: Scenario, before: Tensors, student: Tensors, actual: Tensors, stepped: bool
) -> list[Comparison]:
    """Compare the teacher after an update with what the reference makes of the teacher before.

    Args:
        scenario: the settings.
        before: the trainer's teacher before the update.
        student: its weights after the update.
        actual: its teacher after the update.
        stepped: whether any optimizer step of the update was taken.
    """
    settings = scenario.self_distillation
    average = settings["teacher_regularization"] == "ema" and stepped
    rate = settings["teacher_update_rate"] if average else 0.0
    missing = [name for name in before if name not in actual or name not in student]
    if missing:
        note = f"{len(missing)} weights of the teacher are missing, the first {missing[0]}"
        return [Comparison("teacher_update", Status.ERROR, scenario.id, note=note)]
    sides = []
    for dtype in (torch.float32, torch.float64):
        sides.append(
            {
                name: old.to(dtype) * (1.0 - rate) + rate * student[name].to(dtype)
                if rate
                else old.to(dtype)
                for name, old in before.items()
            }
        )
    expected, truth = sides
    return compare_all_measured("teacher_update", scenario.id, expected, truth, actual)
