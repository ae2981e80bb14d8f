"""How much a trainer's deviations matter: its whole update beside the reference's own.

Unlike the comparisons, which start from the trainer's values at each stage, this is the natural
run: the reference learns from the same script by itself.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

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
    """A trainer's first gradient and last weights against the reference's natural run.

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

    def row(self) -> dict[str, Any]:
        """The effect in the report, JSON's numbers only."""
        return {
            name: value if not isinstance(value, float) or math.isfinite(value) else str(value)
            for name, value in asdict(self).items()
        } | {"introduced": list(self.introduced), "explained_by": list(self.explained_by)}


def effect_of(
    scenario: Scenario,
    run: TrainerRun,
    natural: StageTrace,
    result: CaseResult,
    explained_by: Sequence[str],
    optimised: float | None,
) -> Effect:
    """The effect of everything that a trainer does differently in a scenario.

    `optimised` is the loss that the first step followed.
    """
    introduced = {c.stage for c in result.comparisons if c.status in FAILING and not c.inherits}
    own = trace_of(run)
    first, last = {"update": 0, "step": 0}, {"update": len(run.updates) - 1}
    gradients = flat(*(side.named("accumulate", **first) for side in (own, natural)))
    weights, teacher = (
        (natural.named(stage, **last), own.named(stage, **last))
        for stage in ("optimizer", "teacher_update")
    )
    return Effect(
        scenario.id,
        scenario.description,
        tuple(name for name in NAMES if name in introduced),
        tuple(explained_by),
        **gradient_measures(*gradients),
        parameters_distance=way(run.initial, *weights),
        teacher_distance=way(run.initial_teacher, *teacher),
        logged_loss=run.updates[0].steps[0].logged.get("loss"),
        optimised_loss=optimised,
        reference_loss=mean_loss(natural.micro_batches(**first)),
    )


def mean_loss(micro_batches: Iterable[Mapping[str, Tensor]]) -> float | None:
    """Mean of the losses of an optimizer step's micro-batches; None if none is shown."""
    losses = [values["aggregate"].item() for values in micro_batches if "aggregate" in values]
    return sum(losses) / len(losses) if losses else None


def optimised(scenario: Scenario, step: OptimizerStep, scales: Sequence[float]) -> float | None:
    """What an optimizer step followed: each micro-batch's loss times its gradient's scale.

    None if the trainer does not show a loss; a scale that is not known counts as right.
    """
    usual, found = 1 / scenario.accumulation, 0.0
    for micro_batch, scale in zip(step.micro_batches, scales, strict=True):
        if "aggregate" not in micro_batch.values:
            return None
        weight = scale if math.isfinite(scale) else usual
        found += weight * micro_batch.values["aggregate"].item()
    return found / scenario.processes


def flat(ours: Tensors, theirs: Tensors) -> tuple[Tensor, Tensor]:
    """Two sets of gradients as vectors in float64; a missing one of ours is zero."""
    names = list(theirs)
    sides = [
        torch.cat([side.get(n, torch.zeros_like(theirs[n])).flatten().double() for n in names])
        for side in (ours, theirs)
    ]
    return sides[0], sides[1]


def gradient_measures(ours: Tensor, theirs: Tensor) -> dict[str, float | None]:
    """Ratio of norms, cosine and relative distance of two gradients."""
    norm, own = theirs.norm().item(), ours.norm().item()
    if norm == 0 or not math.isfinite(norm):
        return {}
    return {
        "gradient_ratio": own / norm,
        "gradient_cosine": (ours @ theirs).item() / (own * norm) if own else None,
        "gradient_distance": (ours - theirs).norm().item() / norm,
    }


def way(initial: Tensors, expected: Tensors, actual: Tensors) -> float | None:
    """Distance of two sets of weights, in units of the way from the initial ones."""
    names = [n for n in expected if n in initial and n in actual]
    if not names:
        return None
    gone = sum((expected[n] - initial[n]).double().square().nansum().item() for n in names)
    apart = sum(_squared_distance(expected[n], actual[n]) for n in names)
    return math.sqrt(apart / gone) if gone else None


def _squared_distance(expected: Tensor, actual: Tensor) -> float:
    """Squared distance; infinite if a value is not finite where the expected one is."""
    if bool((expected.isfinite() & ~actual.isfinite()).any()):
        return math.inf
    return (expected - actual).double().square().nansum().item()
