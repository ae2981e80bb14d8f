"""Loss stages of a trainer's micro-batch, compared from the logits that its models gave.

The trainer's own logits are the inputs, so that nothing before them is charged to the loss. Within
the loss a stage that follows from the trainer's value of the stage before is marked as inherited.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial, reduce
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdpo.parity.cases.loss_case import LOSS_SETTINGS, LossCase
from sdpo.parity.cases.tensor_distances import float32_error, scale_of
from sdpo.parity.compare.agreement import counted
from sdpo.parity.compare.comparison import Comparison
from sdpo.parity.compare.evaluated_case import EvaluatedCase, Observation, evaluate_case
from sdpo.parity.compare.loss_stages import compare_loss
from sdpo.parity.compare.statuses import Status
from sdpo.parity.recorded.measured_budgets import budget_share
from sdpo.parity.trainers.judge.forward_stages import OldLogProbs
from sdpo.parity.trainers.scenarios.scenario import Scenario
from sdpo.parity.trainers.scenarios.training_record import MicroBatch
from sdpo.parity.truth.budget import Truth
from sdpo.parity.truth.tolerances import TOLERANCES
from sdpo.reference import loss as reference
from sdpo.reference.forward import entropy_from_logits
from sdpo.reference.update import low_var_kl
from sdpo.settings.config import SDPOConfig

_SIDES = ("student", "teacher")


def loss_case(
    scenario: Scenario,
    case_id: str,
    micro_batch: MicroBatch,
    old_log_probs: Tensor | None,
    distillation_mask: Tensor,
) -> LossCase:
    """Make a case of the loss of a micro-batch.

    Args:
        scenario: the settings.
        case_id: name of the case in reports.
        micro_batch: with both sides' logits `(B, T, V)`.
        old_log_probs: `(B, T)`; None on-policy, where the student's own are taken, so that the
            ratio is 1 and only a cap below 1 acts.
        distillation_mask: `(B,)`.
    """
    settings = {n: scenario.self_distillation[n] for n in LOSS_SETTINGS[:5]}
    if old_log_probs is None and settings["is_clip"] is not None and settings["is_clip"] >= 1:
        settings["is_clip"] = None
    config = SDPOConfig(
        **settings, loss_agg_mode=scenario.loss_agg_mode, temperature=scenario.temperature
    )
    dtype = _computed_in(micro_batch)
    student = micro_batch.logits["student"].detach().to(dtype)
    responses = micro_batch.inputs["responses"]
    if old_log_probs is None:
        old_log_probs = reference.log_probs_from_logits(student / scenario.temperature, responses)
    return LossCase(
        id=case_id,
        config=config,
        student_logits=student,
        teacher_logits=micro_batch.logits["teacher"].detach().to(dtype),
        responses=responses,
        response_mask=micro_batch.inputs["response_mask"].long(),
        old_log_probs=old_log_probs,
        self_distillation_mask=distillation_mask,
        tags=scenario.tags,
    )


def _computed_in(micro_batch: MicroBatch) -> torch.dtype:
    """Find the dtype of the trainer's loss: logits of a lower one may have been cast before."""
    dtypes = {value.dtype for value in micro_batch.values.values() if value.is_floating_point()}
    return max(
        dtypes or {micro_batch.logits["student"].dtype}, key=lambda dtype: -torch.finfo(dtype).eps
    )


def unscaled(gradient: Tensor, expected: Tensor, accumulation: int) -> tuple[Tensor, float]:
    """Take the scale off a micro-batch's gradient that the trainer put on it for accumulation.

    With one micro-batch there is nothing to scale, and a wrong size belongs to the gradient;
    otherwise it belongs to `accumulate`, and only the direction is judged here.

    Returns:
        The gradient of the micro-batch's own loss, and the scale: the projection of the trainer's
        gradient onto the `expected` one, NaN where that is zero.
    """
    weight, finite = 1 / accumulation, gradient.isfinite() & expected.isfinite()
    ours, theirs = gradient[finite].double(), expected[finite].double()
    norm = (theirs * theirs).sum()
    if accumulation == 1 or norm == 0:
        return gradient * accumulation, weight if norm else math.nan
    fitted = float((ours * theirs).sum() / norm)
    roundings = TOLERANCES.micro_batch_scale_roundings * torch.finfo(gradient.dtype).eps
    if fitted <= 0 or abs(fitted / weight - 1) <= roundings:
        return gradient * accumulation, weight
    return (gradient.double() / fitted).to(gradient.dtype), fitted


class ReferenceTerms(NamedTuple):
    """Entropy bonus and KL anchor of a micro-batch by the reference, times their factors.

    `gradient` and `truth` are what they add at the logits `(B, T, V)`, in float32 and in float64.
    """

    value: float
    gradient: Tensor
    truth: Tensor


def reference_terms(
    scenario: Scenario, micro_batch: MicroBatch, ref_log_prob: OldLogProbs | None
) -> ReferenceTerms:
    """Compute the terms from the trainer's logits.

    Args:
        scenario: the settings.
        micro_batch: with the student's logits.
        ref_log_prob: of the reference policy, for the micro-batch; None without an anchor.
    """
    settings, mask = scenario.policy_terms, micro_batch.inputs["response_mask"].long()
    mode, gradients, total = scenario.loss_agg_mode, [], torch.zeros(())
    for side, dtype in (("value", torch.float32), ("truth", torch.float64)):
        logits = micro_batch.logits["student"].detach().to(dtype).requires_grad_(True)
        scaled = logits / scenario.temperature
        entropy = reference.agg_loss(entropy_from_logits(scaled), mask, mode)
        total = entropy * -settings.get("entropy_coeff", 0.0)
        if ref_log_prob is not None:
            log_probs = reference.log_probs_from_logits(scaled, micro_batch.inputs["responses"])
            estimate = low_var_kl(log_probs, getattr(ref_log_prob, side).to(dtype))
            kl_loss = reference.agg_loss(estimate, mask, mode)
            total = total + kl_loss * settings["kl_loss_coef"]
        gradients += torch.autograd.grad(total, logits)
    return ReferenceTerms(total.item(), *gradients)


def compare_micro_batch(
    scenario: Scenario,
    case: LossCase,
    micro_batch: MicroBatch,
    terms: ReferenceTerms | None = None,
) -> tuple[list[Comparison], Observation, float]:
    """Compare the stages that the trainer shows.

    Args:
        scenario: the settings.
        case: of the loss, by `loss_case`.
        micro_batch: what the trainer shows.
        terms: what is added to the loss, if anything is; it is taken off the gradient first.

    Returns:
        Comparisons under the scenario's name, what was observed (for the explanation), and the
        scale that the trainer put on the gradient.
    """
    evaluated = evaluate_case(case)
    values = micro_batch.values | _assumed_choice(evaluated, micro_batch.values)
    trace = {name: value.detach() for name, value in values.items() if name in evaluated.reference}
    raw, widen = micro_batch.logits["gradient"], []
    if terms is not None:
        raw = raw - terms.gradient.to(raw.dtype) / scenario.accumulation
        widen.append(partial(_beside_terms, terms))
    if torch.finfo(raw.dtype).eps > torch.finfo(torch.float32).eps:
        widen.append(partial(_stored_in, raw.dtype))
    gradient, scale = unscaled(
        raw.to(case.dtype), evaluated.reference["gradient"], scenario.accumulation
    )
    trace["gradient"] = gradient
    judge = evaluated
    if widen:
        judge = EvaluatedCase(case, widen=lambda truth: reduce(lambda t, f: f(t), widen, truth))
    compared = compare_loss(judge, trace)
    compared = [replace(comparison, case=scenario.id) for comparison in compared]
    divergent = {c.stage for c in compared if c.status == Status.DIVERGENT}
    if divergent - {"gradient"}:
        scale = scale_of_other_loss(evaluated, trace, scale, scenario.accumulation)
        trace["gradient"] = (raw.double() / scale).to(case.dtype)
    observation = Observation(evaluated, bool(divergent), evaluated.agreement.values_of(trace))
    follows = _continued(evaluated, trace, scenario.on_policy)
    return _mark_inherited(evaluated, trace, follows, compared), observation, scale


def scale_of_other_loss(
    evaluated: EvaluatedCase, trace: Mapping[str, Tensor], fitted: float, accumulation: int
) -> float:
    """Find the scale of a gradient whose loss is another one than the reference's.

    Such a gradient has another size by itself, about by the ratio of the two losses. So the scale
    counts as right unless, with that ratio taken off, it is the right one times or divided by the
    number of accumulation steps.

    Args:
        evaluated: the case.
        trace: what the trainer shows of it.
        fitted: the projection of the trainer's gradient onto the reference's.
        accumulation: micro-batches of an optimizer step.
    """
    ours, theirs = trace.get("aggregate"), evaluated.reference["aggregate"]
    usual = 1 / accumulation
    if ours is None or accumulation == 1 or not bool(theirs != 0):
        return usual
    # the two losses weigh rows differently: projections of their gradients agree only roughly
    factor = fitted * accumulation / float(ours / theirs)
    for wrong in (accumulation, 1 / accumulation):
        if abs(factor / wrong - 1) < TOLERANCES.loss_ratio_spread:
            return usual * wrong
    return usual


def _assumed_choice(evaluated: EvaluatedCase, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the reference's choice of a support of which the trainer shows the values only."""
    shown = values.get("support.student")
    choice = evaluated.reference.get("support.indices")
    if shown is None or choice is None or "support.indices" in values:
        return {}
    return {"support.indices": choice} if shown.shape == choice.shape else {}


def _stored_in(dtype: torch.dtype, truth: Truth) -> Truth:
    """Widen the budgets for a gradient that was stored in a lower dtype."""
    size = np.abs(np.nan_to_num(truth.values["gradient"]))
    wider = truth.bounds["gradient"] + torch.finfo(dtype).eps * size
    return replace(truth, bounds=truth.bounds | {"gradient": wider})


def _beside_terms(terms: ReferenceTerms, truth: Truth) -> Truth:
    """Widen the budgets for a gradient from which that of the terms was taken off, in float32."""
    error = float32_error(terms.gradient, terms.truth)
    share = budget_share(error, torch.finfo(terms.gradient.dtype).eps)
    wider = truth.bounds["gradient"] + share * scale_of(terms.truth)
    return replace(truth, bounds=truth.bounds | {"gradient": wider})


def _mark_inherited(
    evaluated: EvaluatedCase,
    trace: Mapping[str, Tensor],
    continued: Mapping[str, Tensor],
    compared: list[Comparison],
) -> list[Comparison]:
    """Mark divergent stages that the reference would give from the trainer's stage before.

    Args:
        evaluated: the case.
        trace: the trainer's values.
        continued: the reference's values, each from the trainer's stage before.
        compared: the comparisons of the case.
    """
    first = next((c.stage for c in compared if c.status == Status.DIVERGENT), None)
    marked = []
    for comparison in compared:
        later = comparison.status == Status.DIVERGENT and comparison.stage != first
        names = [name for name in continued if name.split(".")[0] == comparison.stage]
        follows = comparison.stage == "gradient" or (
            bool(names)
            and all(agree(evaluated, name, trace[name], continued[name]) for name in names)
        )
        if later and first is not None and follows:
            comparison = replace(comparison, inherits=first)
        marked.append(comparison)
    return marked


def agree(evaluated: EvaluatedCase, name: str, actual: Tensor, expected: Tensor) -> bool:
    """Tell whether a value is the continued one, within what two evaluations may differ by.

    Numerics: the log of a nearly empty tail is ill-conditioned, its probability is not.
    """
    if actual.shape != expected.shape:
        return False
    if name.startswith("tail."):
        ours, theirs = (np.exp(counted(value, evaluated.truth)) for value in (actual, expected))
        limit = TOLERANCES.tail_probability_roundings * torch.finfo(evaluated.case.dtype).eps
        return bool((np.abs(ours - theirs) <= limit).all())
    agreement = evaluated.agreement
    ours, theirs = (agreement.values_of({name: value}) for value in (actual, expected))
    return agreement.same(ours, theirs, agreement.allowances(theirs))


def _continued(
    evaluated: EvaluatedCase, trace: Mapping[str, Tensor], on_policy: bool
) -> dict[str, Tensor]:
    """Compute the reference's stages, each from the trainer's value of the stage before."""
    case, continued = evaluated.case, {}
    config = case.config
    sides = [trace.get(f"support.{side}") for side in _SIDES]
    if config.distillation_topk is not None and None not in sides:
        on_support = reference.add_tail if config.distillation_add_tail else reference.renormalize
        continued |= {
            f"tail.{n}": on_support(v) for n, v in zip(_SIDES, sides, strict=False) if v is not None
        }
        sides = [trace.get(f"tail.{side}", continued[f"tail.{side}"]) for side in _SIDES]
    student, teacher = sides
    if student is not None and teacher is not None and student.shape == teacher.shape:
        continued["divergence"] = reference.divergence(student, teacher, config.alpha)
    per_token = trace.get("divergence", continued.get("divergence"))
    if per_token is not None:
        continued["importance"] = per_token * (1.0 if on_policy else _ratio(case, trace))
    per_token = trace.get("importance", continued.get("importance"))
    if per_token is not None:
        mask = case.loss_mask
        tokens = mask.sum().clamp(min=1.0)
        continued["aggregate"] = reference.agg_loss(per_token, mask, config.loss_agg_mode, tokens)
    return {name: value.detach() for name, value in continued.items() if name in trace}


def _ratio(case: LossCase, trace: Mapping[str, Tensor]) -> Tensor:
    """Compute the reference's importance ratio, from log-probs that the trainer shows."""
    if case.config.is_clip is None or case.old_log_probs is None:
        return torch.ones(())
    log_probs = trace.get("log_probs.student")
    if log_probs is None:
        logits = case.student_logits / case.config.temperature
        log_probs = reference.log_probs_from_logits(logits, case.responses)
    return reference.importance_ratio(log_probs, case.old_log_probs, case.config.is_clip)
