"""Known faults outside the loss that give a trainer's value; ids are those of the catalogue.

Each is tried on the stage that diverges: the reference is changed by the fault, and the trainer's
value must be the changed one exactly (texts, ids) or within the budget (weights).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdpo.parity.compare.statuses import Status
from sdpo.parity.faults.catalogue import BY_ID
from sdpo.parity.trainers.judge.forward_stages import TwoPrecisions, compare_forward
from sdpo.parity.trainers.judge.prompt_stages import (
    ShownPrompts,
    comparable,
    expected_prompts,
)
from sdpo.parity.trainers.judge.reference_run import reference_batch
from sdpo.parity.trainers.judge.weight_stages import ReferenceOptimizer
from sdpo.parity.trainers.scenarios.scenario import Generation, Scenario
from sdpo.parity.trainers.scenarios.training_record import MicroBatch, Tensors
from sdpo.parity.truth.tolerances import TOLERANCES

_USUAL_THRESHOLD = 0.5


class WeightHistory(NamedTuple):
    """A teacher before an update, and the student before it and after each of its steps so far."""

    teacher: Tensors
    students: list[Tensors]


def explained_prompts(
    scenario: Scenario, generation: Generation, shown: ShownPrompts, stage: str, tokenizer: Any
) -> list[str]:
    """Name the faults that give the trainer's value of a prompt stage.

    Args:
        scenario: the script.
        generation: the rollouts.
        shown: the trainer's values by stage.
        stage: the one that diverges.
        tokenizer: of the model.
    """
    return [
        _label(fault)
        for fault, changed, asked in _prompt_faults(scenario, generation)
        if _gives(changed, asked, shown, stage, tokenizer)
    ]


def _label(fault: str) -> str:
    """Name a fault as reports do."""
    return BY_ID[fault].label


def _prompt_faults(
    scenario: Scenario, generation: Generation
) -> Iterator[tuple[str, Scenario, Generation]]:
    """Yield the catalogue's faults of the data path, as changed settings or conversations."""
    settings = scenario.self_distillation
    threshold = settings["success_reward_threshold"]
    changes: dict[str, dict[str, float | bool | str]] = {
        "M28": {"success_reward_threshold": 1.0 if threshold == _USUAL_THRESHOLD else threshold},
        "M117": {"success_reward_threshold": _above_in_float32(threshold)},
        "M29": {"dont_reprompt_on_self_success": False},
        "M30": {"reprompt_truncation": "left"},
        "M106": {"remove_thinking_from_demonstration": False},
        "M107": {"environment_feedback_only_without_solution": False},
        "M108": {"include_environment_feedback": False},
    }
    for fault, change in changes.items():
        if settings | change != settings:  # type: ignore[operator]
            yield fault, replace(scenario, self_distillation={**settings, **change}), generation
    last = tuple(conversation[-1:] for conversation in generation.conversations)
    if last != generation.conversations:
        yield "M27", scenario, replace(generation, conversations=last)


def _above_in_float32(threshold: float) -> float:
    """Take the next float32 if a threshold is rounded to one below it, else the threshold."""
    rounded = torch.tensor(threshold, dtype=torch.float32)
    if rounded.item() >= threshold:
        return threshold
    return torch.nextafter(rounded, torch.tensor(math.inf)).item()


def _gives(
    scenario: Scenario, generation: Generation, shown: ShownPrompts, stage: str, tokenizer: Any
) -> bool:
    """Tell whether the reference with a changed scenario gives the trainer's value of a stage.

    Rows without teacher signal under the changed scenario are left out of prompt and tokens.
    """
    batch, natural = reference_batch(scenario, generation, tokenizer)
    before = {name: value for name, value in shown.items() if name != stage}
    expected = expected_prompts(scenario, generation, before, natural, batch, tokenizer)
    about_teacher = stage in ("teacher_prompt", "teacher_tokens")
    mask = expected["distillation_mask"]
    rows = [row for row in range(len(mask)) if mask[row] or not about_teacher]
    value, wanted = shown[stage], _as_texts(shown[stage], expected[stage])
    pairs = [comparable(value[row], wanted[row]) for row in rows]
    return all(ours == theirs for ours, theirs in pairs)


def _as_texts(shown: Sequence[Any], expected: Sequence[Any]) -> list[Any]:
    """Reduce demonstrations to texts where the trainer shows texts."""
    only_text = any(isinstance(entry, str) for entry in shown)
    return [getattr(e, "text", e) if only_text else e for e in expected]


def explained_scale(scales: Sequence[float], accumulation: int) -> list[str]:
    """Name the faults that give the scales that the trainer put on its micro-batches.

    A scale that is not finite tells nothing: its micro-batch has no gradient.
    """
    labels, known = [], [scale for scale in scales if math.isfinite(scale)]
    for fault, factor in (("M11", accumulation), ("M12", 1 / accumulation)):
        wanted = factor / accumulation
        # a factor is a whole number of accumulation steps, or it is none
        near = [abs(s / wanted - 1) < TOLERANCES.accumulation_factor_spread for s in known]
        if accumulation > 1 and near and all(near):
            labels.append(_label(fault))
    return labels


def explained_forward(
    scenario: Scenario,
    model: TwoPrecisions,
    weights: WeightHistory,
    micro_batch: MicroBatch,
    mask: Tensor,
) -> list[str]:
    """Name the faults that give the logits with which the trainer's teacher answered.

    Args:
        scenario: the settings.
        model: a plain one; faulty weights are loaded into it, and the right ones again.
        weights: of the trainer up to now.
        micro_batch: what the teacher was asked.
        mask: `(B, T)`, the tokens that count.
    """
    teacher, students = weights
    rate = scenario.self_distillation["teacher_update_rate"]
    variants = {"M116": students[-1], "M109": _averaged(teacher, students[1:], rate)}
    labels = []
    for fault, faulty_weights in variants.items():
        model.load(faulty_weights)
        compared = compare_forward(scenario, "teacher", model, micro_batch, mask)
        if compared.status != Status.DIVERGENT:
            labels.append(_label(fault))
    model.load(teacher)
    return labels


def explained_optimizer(
    optimizer: ReferenceOptimizer, before: Tensors, gradient: Tensors, actual: Tensors
) -> list[str]:
    """Name the faults that give the trainer's weights after the step that `optimizer` took last."""
    variants = {fault: optimizer.with_fault(before, gradient, fault) for fault in ("M113", "M114")}
    return [_label(fault) for fault, weights in variants.items() if close(weights, actual)]


def explained_teacher(scenario: Scenario, weights: WeightHistory, actual: Tensors) -> list[str]:
    """Name the faults that give the trainer's teacher after an update, `actual`."""
    (before, students), last = weights, weights.students[-1]
    rate = scenario.self_distillation["teacher_update_rate"]
    before_each_step = [w for w in students[:-1] for _ in range(scenario.accumulation)]
    after_each_step = [w for w in students[1:] for _ in range(scenario.accumulation)]
    zero = {name: torch.zeros_like(value) for name, value in before.items()}
    variants: list[tuple[str, Tensors]] = [
        ("M24", _averaged(before, [last], 1.0 - rate)),
        ("M109", _averaged(before, students[1:], rate)),
        ("M110", before),
        ("M111", {name: last[name] for name in before}),
        ("M112", _averaged(zero, [last], rate)),
    ]
    if scenario.accumulation > 1:
        paths = (before_each_step, after_each_step)
        variants += [("M25", _averaged(before, path, rate)) for path in paths]
    expected = _averaged(before, [last], rate)
    return [
        _label(fault)
        for fault, teacher in variants
        if close(teacher, actual) and not close(teacher, expected)
    ]


def _averaged(before: Tensors, path: Sequence[Tensors], rate: float) -> Tensors:
    """Average a teacher along a path of the student's weights."""
    teacher = dict(before)
    for weights in path:
        teacher = {n: (1.0 - rate) * old + rate * weights[n] for n, old in teacher.items()}
    return teacher


def close(ours: Tensors, theirs: Tensors) -> bool:
    """Tell whether weights agree to a few roundings of the largest one of each tensor."""
    few = TOLERANCES.known_weights_roundings * torch.finfo(torch.float32).eps
    for name, value in ours.items():
        if not torch.equal(value.isfinite(), theirs[name].isfinite()):
            return False
        limit = few * value.abs().nan_to_num().max()
        difference = (value.double() - theirs[name].double()).abs()
        if not bool((difference.nan_to_num() <= limit).all()):
            return False
    return True
