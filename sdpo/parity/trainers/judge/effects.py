"""Measures how much a trainer's deviations matter: its training beside the reference's own.

The comparisons start from the trainer's values at each stage. Here the reference learns from the
same script by itself: its natural run.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdpo.parity.cases.stage_trace import StageTrace
from sdpo.parity.cases.stages import NAMES
from sdpo.parity.compare.statuses import FAILING
from sdpo.parity.compare.verdict import CaseResult
from sdpo.parity.trainers.judge.trainer_trace import trace_of
from sdpo.parity.trainers.scenarios.scenario import Scenario
from sdpo.parity.trainers.scenarios.training_record import OptimizerStep, Tensors, TrainerRun


@dataclass(frozen=True)
class Effect:
    """A trainer's first gradient and last weights beside those of the reference's natural run.

    `gradient_ratio` is the ratio of the norms, `gradient_cosine` the cosine between the two,
    `gradient_distance` the distance ÷ the reference's norm; `parameters_distance` and
    `teacher_distance` are distances after the last update ÷ the way that the reference has gone.
    Of the first step `logged_loss` is the loss that the trainer logged, `optimised_loss` what its
    gradient followed (each micro-batch's loss times the scale found on its gradient), and
    `reference_loss` the reference's. None where there is nothing to compare.
    """

    scenario: str
    description: str
    introduced: tuple[str, ...]
    explained_by: tuple[str, ...] = ()
    gradient_ratio: float | None = None
    gradient_cosine: float | None = None
    gradient_distance: float | None = None
    parameters_distance: float | None = None
    teacher_distance: float | None = None
    logged_loss: float | None = None
    optimised_loss: float | None = None
    reference_loss: float | None = None


def effect_of(
    scenario: Scenario,
    run: TrainerRun,
    natural: StageTrace,
    result: CaseResult,
    explained_by: Sequence[str],
    optimised: float | None,
) -> Effect:
    """Measure the effect of everything that a trainer does differently in a scenario.

    Args:
        scenario: the script.
        run: what the trainer did.
        natural: what the reference did by itself.
        result: the comparisons of the run.
        explained_by: known faults that explain them, by the names of reports.
        optimised: the loss that the first step followed; None where it is not known.
    """
    introduced = {c.stage for c in result.comparisons if c.status in FAILING and not c.inherits}
    trained = trace_of(run)
    first, last = {"update": 0, "step": 0}, {"update": len(run.updates) - 1}
    gradients = flat(*(side.named("accumulate", **first) for side in (trained, natural)))
    weights, teacher = (
        (natural.named(stage, **last), trained.named(stage, **last))
        for stage in ("optimizer", "teacher_update")
    )
    return Effect(
        scenario.id,
        scenario.description,
        tuple(name for name in NAMES if name in introduced),
        tuple(explained_by),
        **gradient_measures(*gradients),
        parameters_distance=relative_distance(run.initial, *weights),
        teacher_distance=relative_distance(run.initial_teacher, *teacher),
        logged_loss=run.updates[0].steps[0].logged.get("loss"),
        optimised_loss=optimised,
        reference_loss=mean_loss(natural.micro_batches(**first)),
    )


def mean_loss(micro_batches: Iterable[Mapping[str, Tensor]]) -> float | None:
    """Average the losses of an optimizer step's micro-batches; None if none is shown."""
    losses = [values["aggregate"].item() for values in micro_batches if "aggregate" in values]
    return sum(losses) / len(losses) if losses else None


def optimised(
    scenario: Scenario, step: OptimizerStep, scales: Sequence[float], terms: Sequence[float]
) -> float | None:
    """Sum the losses of an optimizer step, each times the scale of its gradient: what it followed.

    `terms` are what entropy bonus and KL anchor add to each. None if the trainer does not show a
    loss; a scale that is not known counts as right.
    """
    usual, loss = 1 / scenario.accumulation, 0.0
    for micro_batch, scale, added in zip(step.micro_batches, scales, terms, strict=True):
        if "aggregate" not in micro_batch.values:
            return None
        weight = scale if math.isfinite(scale) else usual
        loss += weight * (micro_batch.values["aggregate"].item() + added)
    return loss / scenario.processes


def flat(ours: Tensors, theirs: Tensors) -> tuple[Tensor, Tensor]:
    """Join two sets of gradients to vectors in float64; a missing one of ours is zero."""
    names = list(theirs)
    sides = [
        torch.cat([side.get(n, torch.zeros_like(theirs[n])).flatten().double() for n in names])
        for side in (ours, theirs)
    ]
    return sides[0], sides[1]


def gradient_measures(ours: Tensor, theirs: Tensor) -> dict[str, float | None]:
    """Measure the ratio of norms, the cosine and the relative distance of two gradients."""
    norm, our_norm = theirs.norm().item(), ours.norm().item()
    if norm == 0 or not math.isfinite(norm):
        return {}
    return {
        "gradient_ratio": our_norm / norm,
        "gradient_cosine": (ours @ theirs).item() / (our_norm * norm) if our_norm else None,
        "gradient_distance": (ours - theirs).norm().item() / norm,
    }


def relative_distance(initial: Tensors, expected: Tensors, actual: Tensors) -> float | None:
    """Measure the distance of two sets of weights ÷ the way gone from the initial ones."""
    names = [n for n in expected if n in initial and n in actual]
    if not names:
        return None
    way = sum((expected[n] - initial[n]).double().square().nansum().item() for n in names)
    distance = sum(_squared_distance(expected[n], actual[n]) for n in names)
    return math.sqrt(distance / way) if way else None


def _squared_distance(expected: Tensor, actual: Tensor) -> float:
    """Square the distance; infinite if a value is not finite where the expected one is."""
    if bool((expected.isfinite() & ~actual.isfinite()).any()):
        return math.inf
    return (expected - actual).double().square().nansum().item()
