"""Loss stages of a trainer's micro-batch, from the logits that its models gave.

The trainer's own logits are the inputs, so that everything before them cannot be charged to the
loss. Within the loss a stage that follows from the trainer's value of the stage before is marked as
inherited.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sdpo.config import SDPOConfig
from sdpo.parity.case import LOSS_SETTINGS, LossCase
from sdpo.parity.compare import DIVERGENT, Comparison
from sdpo.parity.loss_family import ORDER, compare_loss
from sdpo.parity.prepared import (
    Observation,
    Prepared,
    allowances,
    prepared,
    same,
    values_of,
)
from sdpo.parity.whole_step.record import MicroBatch
from sdpo.parity.whole_step.scenario import Scenario
from sdpo.reference import loss as reference

ROUNDINGS_OF_SCALE = 64
"""A fitted scale this many roundings from the reference's is the reference's."""


def loss_case(
    scenario: Scenario,
    case_id: str,
    micro_batch: MicroBatch,
    old_log_probs: Tensor | None,
    distillation_mask: Tensor,
) -> LossCase:
    """A micro-batch as a case of the loss.

    Args:
        scenario: the settings.
        case_id: name of the case in reports.
        micro_batch: with both sides' logits `(B, T, V)`.
        old_log_probs: `(B, T)`; None on-policy, where the student's own are taken.
        distillation_mask: `(B,)`.
    """
    chosen = {n: scenario.self_distillation[n] for n in LOSS_SETTINGS[:5]}
    config = SDPOConfig(
        **chosen, loss_agg_mode=scenario.loss_agg_mode, temperature=scenario.temperature
    )
    student, responses = micro_batch.logits["student"], micro_batch.inputs["responses"]
    if old_log_probs is None:
        old_log_probs = reference.log_probs_from_logits(student / scenario.temperature, responses)
    return LossCase(
        id=case_id,
        config=config,
        student_logits=student.detach(),
        teacher_logits=micro_batch.logits["teacher"].detach(),
        responses=responses,
        response_mask=micro_batch.inputs["response_mask"].long(),
        old_log_probs=old_log_probs,
        self_distillation_mask=distillation_mask,
        tags=scenario.tags,
    )


def unscaled(gradient: Tensor, expected: Tensor, accumulation: int) -> tuple[Tensor, float]:
    """The gradient of the micro-batch's own loss, and the scale that the trainer put on it.

    The scale is the projection of the trainer's gradient onto the reference's. With one micro-batch
    there is nothing to scale, and a wrong size belongs to the gradient; otherwise it belongs to
    `accumulate`, and the direction is judged here.
    """
    weight, finite = 1 / accumulation, gradient.isfinite() & expected.isfinite()
    ours, theirs = gradient[finite].double(), expected[finite].double()
    norm = (theirs * theirs).sum()
    if accumulation == 1 or norm == 0:
        return gradient * accumulation, weight
    fitted = float((ours * theirs).sum() / norm)
    roundings = ROUNDINGS_OF_SCALE * torch.finfo(gradient.dtype).eps
    if fitted <= 0 or abs(fitted / weight - 1) <= roundings:
        return gradient * accumulation, weight
    return (gradient.double() / fitted).to(gradient.dtype), fitted


def compare_micro_batch(
    scenario: Scenario, case: LossCase, micro_batch: MicroBatch
) -> tuple[list[Comparison], Observation, float]:
    """Compare the stages that the trainer shows.

    Returns:
        Comparisons under the scenario's name, what was observed (for the explanation), and the
        scale that the trainer put on the gradient.
    """
    on = prepared(case)
    trace = {name: value.detach() for name, value in micro_batch.values.items()}
    gradient, scale = unscaled(
        micro_batch.logits["gradient"], on.reference["gradient"], scenario.accumulation
    )
    trace["gradient"] = gradient
    found = compare_loss(case, on.truth, on.reference, trace)
    found = [replace(comparison, case=scenario.id) for comparison in found]
    diverges = any(c.status == DIVERGENT for c in found)
    observation = Observation(on, diverges, values_of(on, trace))
    return mark_inherited(on, trace, found), observation, scale


def mark_inherited(
    on: Prepared, trace: Mapping[str, Tensor], found: list[Comparison]
) -> list[Comparison]:
    """Mark divergent stages that the reference would give from the trainer's stage before."""
    first = next((c.stage for c in found if c.status == DIVERGENT), None)
    followed = continued(on, trace)
    own = {name: values_of(on, {name: trace[name]}).get(name) for name in followed}
    marked = []
    for comparison in found:
        later = comparison.status == DIVERGENT and comparison.stage != first
        names = [name for name in followed if name.split(".")[0] == comparison.stage]
        follows = comparison.stage == "gradient" or (
            bool(names) and all(agree(on, name, own[name], followed[name]) for name in names)
        )
        if later and first is not None and follows:
            comparison = replace(comparison, inherits=first)
        marked.append(comparison)
    return marked


def agree(on: Prepared, name: str, actual, expected: Tensor) -> bool:
    """Whether a value is the continued one within what two evaluations may differ by."""
    values = values_of(on, {name: expected})
    return actual is not None and same(on, {name: actual}, values, allowances(on, values))


def continued(on: Prepared, trace: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reference's stages, each from the trainer's value of the stage before."""
    case, found = on.case, {}
    config = case.config
    student, teacher = (trace.get(f"tail.{s}", trace.get(f"support.{s}")) for s in SIDES)
    if student is not None and teacher is not None and student.shape == teacher.shape:
        if "tail.student" not in trace and config.distillation_topk is not None:
            on_support = reference.add_tail if config.distillation_add_tail else (
                reference.renormalize
            )
            student, teacher = on_support(student), on_support(teacher)
        found["divergence"] = reference.divergence(student, teacher, config.alpha)
    per_token = trace.get("divergence", found.get("divergence"))
    if per_token is not None:
        found["importance"] = per_token * ratio(case, trace)
    per_token = trace.get("importance", found.get("importance"))
    if per_token is not None:
        mask = case.loss_mask
        found["aggregate"] = reference.agg_loss(
            per_token, mask, config.loss_agg_mode, mask.sum().clamp(min=1.0)
        )
    return {name: value.detach() for name, value in found.items() if name in trace}


SIDES = ("student", "teacher")


def ratio(case: LossCase, trace: Mapping[str, Tensor]) -> Tensor:
    """The reference's importance ratio, from the trainer's log-probs where it shows them."""
    if case.config.is_clip is None or case.old_log_probs is None:
        return torch.ones(())
    own = trace.get("log_probs.student")
    if own is None:
        logits = case.student_logits / case.config.temperature
        own = reference.log_probs_from_logits(logits, case.responses)
    return reference.importance_ratio(own, case.old_log_probs, case.config.is_clip)


def weighted_tokens(case: LossCase) -> np.ndarray:
    """`(B, T)` bool: tokens that count."""
    return (case.loss_mask != 0).numpy()
