"""Which known fault outside the loss gives a trainer's value? Ids are those of the catalogue.

Each is tried on the stage that diverges: the reference is changed by the fault, and the trainer's
value must be the changed one exactly (texts, ids) or within the budget (weights).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sdpo.parity.compare.statuses import Status
from sdpo.parity.faults.catalogue import BY_ID
from sdpo.parity.trainers.judge.prompt_stages import Shown, comparable, expectations
from sdpo.parity.trainers.judge.reference_run import whole_batch
from sdpo.parity.trainers.judge.weight_stages import Optimizers, Twins, compare_forward
from sdpo.parity.trainers.scenarios.scenario import Generation, Scenario
from sdpo.parity.trainers.scenarios.training_record import MicroBatch, Tensors
from sdpo.parity.truth.tolerances import TOLERANCES

USUAL_THRESHOLD = 0.5


def label(fault: str) -> str:
    """What reports print."""
    return BY_ID[fault].label


def explained_prompts(
    scenario: Scenario, generation: Generation, shown: Shown, stage: str, tokenizer: Any
) -> list[str]:
    """Faults that give the trainer's value of a prompt stage."""
    return [
        label(fault)
        for fault, changed, asked in _prompt_faults(scenario, generation)
        if gives(changed, asked, shown, stage, tokenizer)
    ]


def _prompt_faults(
    scenario: Scenario, generation: Generation
) -> Iterator[tuple[str, Scenario, Generation]]:
    """The catalogue's faults of the data path, as changed settings or conversations."""
    settings = scenario.self_distillation
    threshold = settings["success_reward_threshold"]
    changes: dict[str, dict[str, Any]] = {
        "M28": {"success_reward_threshold": 1.0 if threshold == USUAL_THRESHOLD else threshold},
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
    """The next float32 if the threshold is rounded to one below it, else the threshold."""
    rounded = torch.tensor(threshold, dtype=torch.float32)
    if rounded.item() >= threshold:
        return threshold
    return torch.nextafter(rounded, torch.tensor(math.inf)).item()


def gives(
    scenario: Scenario, generation: Generation, shown: Shown, stage: str, tokenizer: Any
) -> bool:
    """Whether the reference with a changed scenario gives the trainer's value of a stage.

    Rows without teacher signal under the changed scenario are left out of prompt and tokens.
    """
    batch, natural = whole_batch(scenario, generation, tokenizer)
    before = {name: value for name, value in shown.items() if name != stage}
    expected = expectations(scenario, generation, before, natural, batch, tokenizer)
    about_teacher = stage in ("teacher_prompt", "teacher_tokens")
    mask = expected["distillation_mask"]
    rows = [row for row in range(len(mask)) if mask[row] or not about_teacher]
    value, wanted = shown[stage], _as_texts(shown[stage], expected[stage])
    pairs = [comparable(value[row], wanted[row]) for row in rows]
    return all(ours == theirs for ours, theirs in pairs)


def _as_texts(shown: Sequence[Any], expected: Sequence[Any]) -> list[Any]:
    """Demonstrations as texts where the trainer shows texts."""
    only_text = any(isinstance(entry, str) for entry in shown)
    return [getattr(e, "text", e) if only_text else e for e in expected]


def explained_scale(scales: Sequence[float], accumulation: int) -> list[str]:
    """Faults that give the scales that the trainer put on its micro-batches; NaN tells nothing."""
    found, told = [], [scale for scale in scales if math.isfinite(scale)]
    for fault, factor in (("M11", accumulation), ("M12", 1 / accumulation)):
        wanted = factor / accumulation
        # a factor is a whole number of accumulation steps, or it is none
        near = [abs(s / wanted - 1) < TOLERANCES.accumulation_factor_spread for s in told]
        if accumulation > 1 and near and all(near):
            found.append(label(fault))
    return found


def explained_forward(
    scenario: Scenario,
    twins: Twins,
    moved: tuple[Tensors, list[Tensors]],
    micro_batch: MicroBatch,
    mask: Tensor,
) -> list[str]:
    """Faults that give the logits with which the trainer's teacher answered.

    Args:
        scenario: the settings.
        twins: a plain model; other weights are loaded into it, and the right ones again.
        moved: the teacher before the update, and the student's weights before the update and after
            each optimizer step so far.
        micro_batch: what the teacher was asked.
        mask: `(B, T)`, the tokens that count.
    """
    teacher, path = moved
    rate = scenario.self_distillation["teacher_update_rate"]
    variants = {"M116": path[-1], "M109": _averaged(teacher, path[1:], rate)}
    found = []
    for fault, weights in variants.items():
        twins.load(weights)
        compared = compare_forward(scenario, "teacher", twins, micro_batch, mask)
        if compared.status != Status.DIVERGENT:
            found.append(label(fault))
    twins.load(teacher)
    return found


def explained_optimizer(
    optimizers: Optimizers, before: Tensors, gradient: Tensors, actual: Tensors
) -> list[str]:
    """Faults that give the trainer's weights after the step that `optimizers` took last."""
    variants = {fault: optimizers.without(before, gradient, fault) for fault in ("M113", "M114")}
    return [label(fault) for fault, weights in variants.items() if close(weights, actual)]


def explained_teacher(
    scenario: Scenario, before: Tensors, path: Sequence[Tensors], actual: Tensors
) -> list[str]:
    """Faults that give the trainer's teacher.

    Args:
        scenario: the settings.
        before: the teacher before the update.
        path: the student's weights before the update and after each of its optimizer steps.
        actual: the teacher afterwards.
    """
    settings = scenario.self_distillation
    rate, last = settings["teacher_update_rate"], path[-1]
    seen = [w for w in path[:-1] for _ in range(scenario.accumulation)]
    left = [w for w in path[1:] for _ in range(scenario.accumulation)]
    zero = {name: torch.zeros_like(value) for name, value in before.items()}
    variants: list[tuple[str, Tensors]] = [
        ("M24", _averaged(before, [last], 1.0 - rate)),
        ("M109", _averaged(before, path[1:], rate)),
        ("M110", before),
        ("M111", {name: last[name] for name in before}),
        ("M112", _averaged(zero, [last], rate)),
    ]
    if scenario.accumulation > 1:
        variants += [("M25", _averaged(before, weights, rate)) for weights in (seen, left)]
    expected = _averaged(before, [last], rate)
    return [
        label(fault)
        for fault, teacher in variants
        if close(teacher, actual) and not close(teacher, expected)
    ]


def _averaged(before: Mapping[str, Any], path: Sequence[Tensors], rate: float) -> Tensors:
    """The moving average along a path of the student's weights."""
    teacher = dict(before)
    for weights in path:
        teacher = {n: (1.0 - rate) * old + rate * weights[n] for n, old in teacher.items()}
    return teacher


def close(ours: Tensors, theirs: Tensors) -> bool:
    """Whether two sets of weights agree to a few roundings of the largest weight of each tensor."""
    few = TOLERANCES.known_weights_roundings * torch.finfo(torch.float32).eps
    for name, value in ours.items():
        if not torch.equal(value.isfinite(), theirs[name].isfinite()):
            return False
        limit = few * value.abs().nan_to_num().max()
        apart = (value.double() - theirs[name].double()).abs()
        if not bool((apart.nan_to_num() <= limit).all()):
            return False
    return True
