"""Check metamorphic relations of a trainer: its first updates from two scripts are compared.

Budgets are those of the weights' stages, one for each side: a few times the distance of the
reference's float32 run from its float64 run. Results stand beside the stages, as those of a loss.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch

from sdpo.parity.cases.checked_call import CandidateError, NotCoveredError
from sdpo.parity.cases.tensor_distances import float32_error, scale_of
from sdpo.parity.compare.statuses import RelationStatus, Status
from sdpo.parity.recorded.measured_budgets import budget_share
from sdpo.parity.relations.catalogue import RELATIONS, Relation
from sdpo.parity.relations.relation_rows import (
    ClaimOutcome,
    RelationRow,
    blamed,
    relation_row,
)
from sdpo.parity.trainers.judge.effects import mean_loss
from sdpo.parity.trainers.judge.reference_run import run_reference
from sdpo.parity.trainers.judge.weight_stages import merged
from sdpo.parity.trainers.probes.changed_experiment import Refusal, why_one_experiment
from sdpo.parity.trainers.probes.relation_pairs import PAIRS, SCALE_OF_ZERO, Pair
from sdpo.parity.trainers.probes.run_probes import train
from sdpo.parity.trainers.recording.adapter_base import ScenarioRunner
from sdpo.parity.trainers.recording.quiet_packages import quiet
from sdpo.parity.trainers.scenarios.scenario import Scenario
from sdpo.parity.trainers.scenarios.tiny_model import handed_tokenizer, tiny_model
from sdpo.parity.trainers.scenarios.training_record import Tensors, TrainerRun
from sdpo.parity.truth.tolerances import TOLERANCES
from sdpo.parity.truth.usable_budget import refusal, shows_a_factor_of_two

_EPSILON = torch.finfo(torch.float32).eps
_CONTINUITY = "a matter of the loss alone: a trainer passes alpha on"
_NO_DIVERGENCE = "the trainer does not show the divergence of its tokens"
NEVER_LEARNS = "the trainer's gradient is zero whatever it is given"
_SHARED = "the trainer does not show gradients of the teacher"
NEVER_NEGATIVE, TEACHER = "never negative", "teacher gets no gradient"


@dataclass(frozen=True)
class FirstUpdate:
    """Loss and gradient of a first update; no loss where a trainer shows none.

    `run` is the trainer's, None for the reference.
    """

    loss: float | None
    gradient: Tensors
    run: TrainerRun | None = None


_FirstUpdateOf = Callable[[Scenario], FirstUpdate]


def trainer_relations(
    candidate: ScenarioRunner, runs: Mapping[str, TrainerRun]
) -> list[RelationRow]:
    """Check all relations, and return the row of each in the report.

    Args:
        candidate: trains the scripts of `relation_pairs.all_scripts`.
        runs: of the scenarios, by id.
    """
    with quiet():
        return [row_of(candidate, relation, runs) for relation in RELATIONS]


def row_of(
    candidate: ScenarioRunner, relation: Relation, runs: Mapping[str, TrainerRun]
) -> RelationRow:
    """Check one relation, and return its row in the report."""
    if relation.name in PAIRS:
        pairs = PAIRS[relation.name]
        reference = [outcome_of(reference_first, pair) for pair in pairs]
        trained = [outcome_of(lambda s: _first_of(train(candidate, s)), pair) for pair in pairs]
        outcomes = [blamed(*sides) for sides in zip(trained, reference, strict=True)]
        return relation_row(relation, outcomes, reference)
    holds = [ClaimOutcome(RelationStatus.HOLDS, "scenarios")]
    if relation.name == NEVER_NEGATIVE:
        return relation_row(relation, never_negative(runs), holds)
    if relation.name == TEACHER:
        return relation_row(relation, teacher_gradient(runs), holds)
    untested = [ClaimOutcome(RelationStatus.NOT_COVERED, "", note=_CONTINUITY)]
    return relation_row(relation, untested, untested)


def _first_of(run: TrainerRun) -> FirstUpdate:
    """Take loss and gradient of a trainer's first optimizer step."""
    step = run.updates[0].steps[0]
    return FirstUpdate(mean_loss(m.values for m in step.micro_batches), step.gradient, run)


_REFERENCE: dict[tuple[str, torch.dtype], FirstUpdate] = {}
"""The reference's updates by scenario, as text: its settings are a mapping, which has no hash."""


def reference_first(scenario: Scenario, dtype: torch.dtype = torch.float32) -> FirstUpdate:
    """Compute loss and gradient of the reference's first optimizer step, once for each scenario."""
    key = str(scenario), dtype
    if key not in _REFERENCE:
        _REFERENCE[key] = _run_reference_first(scenario, dtype)
    return _REFERENCE[key]


def _run_reference_first(scenario: Scenario, dtype: torch.dtype) -> FirstUpdate:
    """Let the reference make its first optimizer step."""
    size, per_step = scenario.micro_batch_size, scenario.accumulation * scenario.processes
    steps = len(scenario.generations[0].rollouts) // (size * per_step)
    starts = iter(range(0, steps * per_step * size, size))
    groups = [
        [list(range(start, start + size)) for start in (next(starts) for _ in range(per_step))]
        for _ in range(steps)
    ]
    with TemporaryDirectory(prefix="sdpo-relation-") as folder:
        model, tokenizer = tiny_model(scenario, Path(folder)), handed_tokenizer(scenario)
    gather = merged if scenario.lora else None
    trace = run_reference(scenario, model, tokenizer, [groups], merged=gather, dtype=dtype)
    return FirstUpdate(mean_loss(trace.micro_batches(0, 0)), trace.named("accumulate", 0, 0))


def spread_of(scenario: Scenario) -> float:
    """Measure the largest distance of the reference's float32 gradients from float64, ÷ scale."""
    single = reference_first(scenario).gradient
    double = reference_first(scenario, torch.float64).gradient
    return max(float32_error(value, double[name]) for name, value in single.items())


def outcome_of(first: _FirstUpdateOf, pair: Pair) -> ClaimOutcome:
    """Test one pair on a trainer, or on the reference."""
    try:
        left = first(pair.left)
        right = None if pair.right is None else first(pair.right)
        refused = _nothing_tested(first, pair, left, right)
    except NotCoveredError as error:
        return ClaimOutcome(RelationStatus.NOT_COVERED, pair.case, note=str(error))
    except CandidateError as error:
        return ClaimOutcome(RelationStatus.ERROR, pair.case, note=str(error))
    if refused is not None:
        return ClaimOutcome(RelationStatus(refused.status), pair.case, note=refused.note)
    outcomes, relative_budget = _distances(pair, left, right)
    worst = max(outcomes, key=lambda outcome: outcome.used or 0.0)
    holds = worst.status == RelationStatus.HOLDS and worst.used
    if holds and not shows_a_factor_of_two(relative_budget):
        note = refusal({"a gradient": relative_budget})
        return ClaimOutcome(RelationStatus.NOT_COVERED, pair.case, note=note)
    return worst


def _distances(
    pair: Pair, left: FirstUpdate, right: FirstUpdate | None
) -> tuple[list[ClaimOutcome], float]:
    """Compare gradients and losses of two updates, or of one with zero.

    Returns:
        The outcomes, and the budget ÷ size of a value.
    """
    scale_from = SCALE_OF_ZERO if right is None else pair.left
    relative_budget = 2 * budget_share(spread_of(scale_from), _EPSILON)
    usual = reference_first(scale_from)
    outcomes = [
        measured(
            "gradient",
            pair.case,
            _largest_difference(left.gradient[name], right and pair.place(right.gradient)[name]),
            relative_budget * max(scale_of(usual.gradient[name]), scale_of(left.gradient[name])),
        )
        for name in usual.gradient
        if name in left.gradient
    ]
    right_loss = 0.0 if right is None else right.loss
    if left.loss is not None and right_loss is not None:
        budget = relative_budget * max(abs(usual.loss or 0.0), abs(left.loss))
        outcomes.append(measured("loss", pair.case, abs(left.loss - right_loss), budget))
    return outcomes, relative_budget


def _nothing_tested(
    first: _FirstUpdateOf, pair: Pair, left: FirstUpdate, right: FirstUpdate | None
) -> Refusal | None:
    """Tell why two updates say nothing: one experiment, or a trainer that does not learn.

    Of a relation that wants zero the plain script's update is looked at.
    """
    if left.run is None:
        return None
    if right is not None and right.run is not None and pair.right is not None:
        refused = why_one_experiment(pair.left, pair.right, left.run, right.run)
        if refused is not None or learns(left) or learns(right):
            return refused
    elif learns(first(SCALE_OF_ZERO)):
        return None
    return Refusal(Status.NOT_COVERED, NEVER_LEARNS)


def learns(update: FirstUpdate) -> bool:
    """Tell whether a gradient has any entry that is not zero."""
    return any(bool((value != 0).any()) for value in update.gradient.values())


def _largest_difference(left: torch.Tensor, right: torch.Tensor | None) -> float:
    """Measure the largest difference of two gradients, or of one from zero; NaN is infinite."""
    difference = (left if right is None else left - right).double().abs().max().item()
    return difference if math.isfinite(difference) else math.inf


def measured(
    value: Literal["loss", "gradient"], case: str, difference: float, budget: float
) -> ClaimOutcome:
    """Judge a difference by its budget."""
    used = 0.0 if difference == 0 else difference / budget if budget else math.inf
    status = RelationStatus.HOLDS if used <= 1 else RelationStatus.VIOLATED
    return ClaimOutcome(status, case, used, value, difference, budget)


def never_negative(runs: Mapping[str, TrainerRun]) -> list[ClaimOutcome]:
    """Check the smallest divergence of a token in each scenario that compares distributions."""
    outcomes = []
    for name, run in runs.items():
        values = [
            micro.values["divergence"]
            for update in run.updates
            for step in update.steps
            for micro in step.micro_batches
            if "divergence" in micro.values
        ]
        of_distributions = run.settings.get("full_logit_distillation", True)
        finite = [value[value.isfinite()] for value in values]
        if of_distributions and (sizes := [value for value in finite if value.numel()]):
            lowest = min(value.min().item() for value in sizes)
            largest = max(value.abs().max().item() for value in sizes)
            budget = 2 * TOLERANCES.update_roundings * _EPSILON * max(largest, 1.0)
            outcomes.append(measured("loss", name, max(-lowest, 0.0), budget))
    return outcomes or [ClaimOutcome(RelationStatus.NOT_COVERED, "", note=_NO_DIVERGENCE)]


def teacher_gradient(runs: Mapping[str, TrainerRun]) -> list[ClaimOutcome]:
    """Check in each scenario that no gradient was found on the teacher's weights."""
    outcomes = [
        ClaimOutcome(
            RelationStatus.VIOLATED if run.teacher_gradient else RelationStatus.HOLDS, name
        )
        for name, run in runs.items()
        if run.teacher_gradient is not None
    ]
    return outcomes or [ClaimOutcome(RelationStatus.NOT_COVERED, "", note=_SHARED)]
