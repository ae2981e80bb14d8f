"""Forward passes, accumulated gradient, optimizer and teacher, each from the trainer's own values.

The models' arithmetic is outside the oracle: a budget is a few times the distance between the
reference's float32 and its float64 run on the same inputs, relative to the tensor's scale.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sdpo.fixtures.models import build_optimizer
from sdpo.parity.cases.checked_call import same_bits
from sdpo.parity.compare.comparison import Comparison, compare_exact
from sdpo.parity.compare.statuses import Status
from sdpo.parity.recorded.measured_budgets import compare_all_measured, compare_measured
from sdpo.parity.trainers.judge.prompt_stages import attended
from sdpo.parity.trainers.scenarios.scenario import Scenario
from sdpo.parity.trainers.scenarios.training_record import MicroBatch, OptimizerStep, Tensors

MODEL_INPUTS = ("input_ids", "attention_mask", "position_ids")
TRUTH = torch.float64

Side = tuple[dict[str, nn.Parameter], torch.optim.Optimizer]


@dataclass
class Spread:
    """A value of the reference in the scenario's precision, and in float64."""

    value: Tensor
    truth: Tensor

    def of(self, rows: list[int], width: int) -> "Spread":
        """Some rows, cut to a width."""
        return Spread(self.value[rows][:, :width], self.truth[rows][:, :width])


@dataclass
class Twins:
    """One model in float32 and in float64."""

    single: nn.Module
    double: nn.Module

    @classmethod
    def of(cls, model: nn.Module) -> "Twins":
        """Copies of a model, in evaluation mode.

        Numerics: eager attention takes its softmax in float32 whatever the dtype, and masks with a
        number that float32 does not have; in float64 another implementation is used.
        """
        double = copy.deepcopy(model).to(TRUTH).eval()
        double.set_attn_implementation("sdpa")  # type: ignore[operator]
        return cls(copy.deepcopy(model).float().eval(), double)

    def load(self, weights: Tensors) -> None:
        """Take over weights by name, in both precisions; the others stay."""
        with torch.no_grad():
            for module in (self.single, self.double):
                for name, parameter in module.named_parameters():
                    if name in weights:
                        parameter.copy_(weights[name])


def merged(model: nn.Module) -> nn.Module:
    """A plain copy of a PEFT model with its adapter's effect in the weights."""
    return copy.deepcopy(model).merge_and_unload()  # type: ignore[operator]


def named(module: nn.Module) -> Tensors:
    """All weights by name."""
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def logits_of(
    module: nn.Module, micro_batch: MicroBatch, side: str, autocast: torch.dtype
) -> Tensor:
    """A module's logits of the response tokens on the inputs that the trainer gave, `(B, T, V)`."""
    start = "teacher_" if side == "teacher" else ""
    inputs = {
        name: micro_batch.inputs[start + name]
        for name in MODEL_INPUTS
        if start + name in micro_batch.inputs
    }
    width = micro_batch.inputs["responses"].size(1)
    with torch.autocast("cpu", dtype=autocast, enabled=autocast == torch.bfloat16):
        return module(**inputs, use_cache=False).logits[:, -width - 1 : -1]


def compare_forward(
    scenario: Scenario, side: str, twins: Twins, micro_batch: MicroBatch, mask: Tensor
) -> Comparison:
    """The trainer's logits against the reference model's, at the tokens that count.

    This sees dropout, another mode, other weights, and inputs that are not what the model used.
    """
    low = getattr(torch, scenario.dtype)
    with torch.no_grad():
        expected = logits_of(twins.single, micro_batch, side, low).float()
        truth = logits_of(twins.double, micro_batch, side, torch.float32)
    counts = mask != 0
    actual = micro_batch.logits[side].float()[counts]
    expected, truth = expected[counts], truth[counts]
    found = compare_measured("log_probs", scenario.id, expected, truth, actual)
    return replace(found, note=f"{side}'s forward pass: {found.note}" if found.note else "")


def compare_old(scenario: Scenario, expected: Spread, actual: Tensor, mask: Tensor) -> Comparison:
    """The trainer's log-probs at the weights that generated, `(B, T)`, at the tokens that count."""
    counts = mask != 0
    value, truth = expected.value.float()[counts], expected.truth[counts]
    actual = actual.float()[counts]
    found = compare_measured("log_probs", scenario.id, value, truth, actual)
    return replace(found, note=f"old log-probs: {found.note}" if found.note else "")


def compare_student_tokens(
    scenario: Scenario, micro_batch: MicroBatch, batch: Mapping[str, Tensor]
) -> list[Comparison]:
    """Student's tokens, positions and response mask of a micro-batch, against the reference's."""
    rows = micro_batch.rows
    shown = micro_batch.inputs
    ours = attended(shown["input_ids"], shown["attention_mask"], shown.get("position_ids"))
    expected_ids, mask, positions = (batch[name][rows] for name in MODEL_INPUTS)
    theirs = attended(expected_ids, mask, positions)
    found = []
    for row, (actual, expected) in enumerate(zip(ours, theirs, strict=True)):
        if actual["input_ids"] and actual != expected:  # rows that are not asked show no tokens
            name = f"tokens of the student, row {rows[row]}"
            found = [compare_exact("log_probs", scenario.id, name, actual, expected)]
            break
    width = batch["response_mask"].size(1)
    mask = torch.nn.functional.pad(
        micro_batch.inputs["response_mask"].long(),
        (0, width - micro_batch.inputs["response_mask"].size(1)),
    )
    name = "response mask"
    expected_mask = batch["response_mask"][rows].tolist()
    found.append(
        compare_exact("distillation_mask", scenario.id, name, mask.tolist(), expected_mask)
    )
    return found


def compare_gradient(
    scenario: Scenario, twins: Twins, step: OptimizerStep, scales: list[float]
) -> list[Comparison]:
    """The parameters' gradient against that of the trainer's micro-batches, scaled as it should.

    `scales` are those that the trainer put on its micro-batches, NaN where there is no gradient.
    """
    low = getattr(torch, scenario.dtype)
    expected = backward(scenario, twins.single, step, scales, low)
    truth = backward(scenario, twins.double, step, scales, torch.float32)
    missing = [name for name in expected if name not in step.gradient]
    if missing:
        note = f"{len(missing)} gradients are missing, the first of {missing[0]}"
        return [Comparison("accumulate", Status.ERROR, scenario.id, note=note)]
    return compare_all_measured("accumulate", scenario.id, expected, truth, step.gradient)


def backward(
    scenario: Scenario,
    module: nn.Module,
    step: OptimizerStep,
    scales: list[float],
    autocast: torch.dtype,
) -> Tensors:
    """Gradients of the trainable parameters, by name: the mean over processes of their sums."""
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


class Optimizers:
    """The reference's clipping and step from the trainer's gradients, in both precisions."""

    def __init__(self, scenario: Scenario, initial: Tensors):
        self.scenario = scenario
        self.sides = [self.side(initial, dtype) for dtype in (torch.float32, TRUTH)]
        self.previous = self.sides[0]

    def side(self, initial: Tensors, dtype: torch.dtype) -> Side:
        """Parameters and their optimizer in one precision."""
        parameters = {
            name: nn.Parameter(value.detach().to(dtype, copy=True))
            for name, value in initial.items()
        }
        return parameters, build_optimizer(dict(self.scenario.optimizer), parameters.values())

    def step(self, before: Tensors, gradient: Tensors) -> tuple[Tensors, Tensors, float]:
        """Weights after a step from `before`, float32 and float64, and the norm of the gradient."""
        self.previous = copy.deepcopy(self.sides[0])
        limit, norm = self.scenario.grad_clip, math.nan
        for side in self.sides:
            norm = _one_step(side, before, gradient, limit)
        after = [{n: p.detach().clone() for n, p in side[0].items()} for side in self.sides]
        return after[0], after[1], norm

    def without(self, before: Tensors, gradient: Tensors, fault: str) -> Tensors:
        """Weights after the last step, had it been taken with a fault of the catalogue.

        `M113` steps although the gradient is not finite, `M114` does not clip.
        """
        side = copy.deepcopy(self.previous)
        limit = math.inf if fault == "M114" else self.scenario.grad_clip
        _one_step(side, before, gradient, limit, skip=fault != "M113")
        return {name: parameter.detach() for name, parameter in side[0].items()}


def _one_step(
    side: Side, before: Tensors, gradient: Tensors, limit: float, *, skip: bool = True
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
    """The teacher before the first update: the student, as both come from one checkpoint."""
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
    """The teacher after an update, from the trainer's teacher before and its weights after."""
    settings = scenario.self_distillation
    average = settings["teacher_regularization"] == "ema" and stepped
    rate = settings["teacher_update_rate"] if average else 0.0
    missing = [name for name in before if name not in actual or name not in student]
    if missing:
        note = f"{len(missing)} weights of the teacher are missing, the first {missing[0]}"
        return [Comparison("teacher_update", Status.ERROR, scenario.id, note=note)]
    sides = []
    for dtype in (torch.float32, TRUTH):
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
