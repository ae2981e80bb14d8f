"""How far two traces of one update are apart, stage by stage, and how far they may be.

The reference is also run in float64: what float32 alone moves a value by, measured there, times
`live_slack`, is what a candidate in float32 may deviate. Where that is so much that no fault would
show, nothing is said of the value (`usable_budget.py`).
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdpo.lockstep.reference_update import RepeatedUpdate
from sdpo.parity.cases.stage_trace import SCALED_LOSS, Moment, Place, StageTrace, stage_of
from sdpo.parity.cases.stages import PROMPT_STAGES
from sdpo.parity.cases.tensor_distances import Match, distance, largest_by_kind, match, relative
from sdpo.parity.truth.tolerances import TOLERANCES
from sdpo.parity.truth.usable_budget import refusal, shows_a_factor_of_two

_EXACT = PROMPT_STAGES
TEACHER_MOVED = "teacher_moved"
"""Of the candidate: whether the teacher was another one than at the update's beginning."""
_PER_TOKEN = (
    "log_probs.student",
    "log_probs.teacher",
    "support.student",
    "support.teacher",
    "tail.student",
    "tail.teacher",
    "divergence",
    "importance",
)


MicroBatches = Sequence[Mapping[str, Any]]
"""The values by name of each micro-batch of an optimizer step."""


@dataclass(frozen=True)
class Delta:
    """Distance at one place of an update: relative 2-norm, or 0 and infinity for exact stages."""

    stage: str
    name: str
    value: float
    step: int = 0


def deltas(
    actual: StageTrace, expected: RepeatedUpdate, *, same_split: bool = True
) -> Iterator[Delta]:
    """All distances, in the order in which an update produces the values.

    Args:
        actual: the candidate's.
        expected: the reference's; its `matches` are filled in.
        same_split: both sides used the same micro-batches, so that losses of micro-batches
            correspond; otherwise the scaled sums of each step are compared.
    """
    reference = expected.trace
    for stage in _EXACT:
        place = Place(*Moment(), stage, stage)
        if place in actual and place in reference:
            equal = _same_value(actual[place], reference[place])
            yield Delta(stage, stage, 0.0 if equal else math.inf)
    expected.matches = expected.matches or _gradient_matches(actual, reference)
    for step, agreement in enumerate(expected.matches):
        sides = actual.micro_batches(0, step), reference.micro_batches(0, step)
        moved = any(values.get(TEACHER_MOVED) for values in sides[0])
        yield Delta("teacher_update", "too early", math.inf if moved else 0.0, step)
        yield from _token_deltas(*sides, step)
        yield Delta("aggregate", "aggregate", _loss_delta(*sides, same_split), step)
        yield Delta("accumulate", "gradient", agreement.distance, step)
        mine, theirs = (side.named("optimizer", 0, step) for side in (actual, reference))
        yield Delta("optimizer", "weights", distance(mine, theirs, expected.start), step)
    mine, theirs = (side.named("teacher_update") for side in (actual, reference))
    teachers = distance(mine, theirs, expected.followed_start)
    yield Delta("teacher_update", "teacher", teachers, len(expected.matches) - 1)


def _gradient_matches(actual: StageTrace, expected: StageTrace) -> list[Match]:
    """How the gradients of two sides agree at each optimizer step.

    Raises:
        ValueError: the sides took another number of steps.
    """
    if actual.steps() != expected.steps():
        raise ValueError(f"optimizer steps {actual.steps()}, expected {expected.steps()}")
    return [
        match(actual.named("accumulate", 0, step), expected.named("accumulate", 0, step))
        for step in expected.steps()
    ]


def _same_value(actual: object, expected: object) -> bool:
    """Equality of lists, texts and tensors inside tuples or lists."""
    if isinstance(actual, Tensor) or isinstance(expected, Tensor):
        return torch.equal(torch.as_tensor(actual).cpu(), torch.as_tensor(expected).cpu())
    if isinstance(actual, list | tuple) and isinstance(expected, list | tuple):
        same = zip(actual, expected, strict=False)
        return len(actual) == len(expected) and all(_same_value(a, e) for a, e in same)
    return actual == expected


def _token_deltas(mine: MicroBatches, theirs: MicroBatches, step: int) -> Iterator[Delta]:
    """Distances of the per-token stages, at the tokens that the reference counts."""
    counted = _rows(theirs, "loss_mask") != 0
    for name in _PER_TOKEN:
        if name in mine[0] and name in theirs[0]:
            actual, expected = _rows(mine, name), _rows(theirs, name)
            fits = actual.shape == expected.shape
            value = relative(actual[counted], expected[counted]) if fits else math.inf
            yield Delta(stage_of(name), name, value, step)


def _rows(micro_batches: MicroBatches, name: str) -> Tensor:
    """A per-token value of all micro-batches, `(B, …)`."""
    return torch.cat([values[name] for values in micro_batches])


def _loss_delta(mine: MicroBatches, theirs: MicroBatches, same_split: bool) -> float:
    """Distance of the losses of a step's micro-batches.

    A loss without any token is NaN in the reference, in some modes, and 0 in ours.
    """
    if same_split:
        sides = [
            torch.stack([values["aggregate"] for values in side]).double()
            for side in (mine, theirs)
        ]
    else:
        sides = [torch.tensor([scaled_loss(side)]).double() for side in (mine, theirs)]
    empty = sides[1].isnan() & (sides[0] == 0)
    return relative(torch.where(empty, 0.0, sides[0]), torch.where(empty, 0.0, sides[1]))


def scaled_loss(micro_batches: MicroBatches) -> float:
    """Sum of the losses of an optimizer step, each times its scale."""
    return sum(values.get(SCALED_LOSS, 0.0) for values in micro_batches)


def farthest(processes: Sequence[Sequence[Delta]]) -> list[Delta]:
    """At each place the greatest of the distances that several processes found."""
    return [max(same, key=lambda delta: delta.value) for same in zip(*processes, strict=True)]


def noise(distances: Iterable[Delta], unit: float = 0.0) -> dict[str, float]:
    """What the precision of a run moves each kind of value by: the greatest distance of an update.

    Args:
        distances: of the reference, in the run's precision, from itself in float64.
        unit: roundoff of the backward pass, if that is less precise than the loss.

    Numerics: errors of tokens can cancel in a loss, by luck, so a loss is allowed no less than its
    tokens. A less precise backward pass rounds their errors away, by luck, or up: an error `e` then
    moves one in `unit / e` entries of a gradient by `unit`, which is `sqrt(unit * e)` in the norm.
    """
    found = largest_by_kind((d.name, d.value) for d in distances if math.isfinite(d.value))
    tokens = found.get("importance", 0.0)
    found["aggregate"] = max(found.get("aggregate", 0.0), tokens)
    for name in ("gradient", "weights", "teacher"):
        found[name] = max(found.get(name, 0.0), math.sqrt(unit * tokens))
    return found


def budgets(noises: Mapping[str, float], names: set[str]) -> dict[str, float]:
    """The distance that each kind of value may have; 0 for exact stages."""
    floor = TOLERANCES.live_roundings * torch.finfo(torch.float32).eps
    slack = TOLERANCES.live_slack
    found = {name: slack * (noises.get(name, 0.0) + floor) for name in names}
    return found | dict.fromkeys(_EXACT, 0.0)


def sizeless(expected: RepeatedUpdate) -> dict[str, float]:
    """Infinite budgets of values that have no size in the reference, though tokens count.

    Where student and teacher answer alike, rounding may cancel to a gradient of exactly zero on one
    side alone. Nothing can be said then of the gradient, nor of the weights that follow from it.
    """
    one_is_zero = Match(math.inf, 0.0)
    nothing = any(
        agreement == one_is_zero
        and bool(_rows(expected.trace.micro_batches(0, step), "loss_mask").any())
        for step, agreement in enumerate(expected.matches)
    )
    return dict.fromkeys(("gradient", "weights", "teacher"), math.inf) if nothing else {}


def first_moved(found: list[Delta], allowed: Mapping[str, float]) -> Delta | None:
    """The earliest distance beyond its budget."""
    return next((delta for delta in found if delta.value > allowed[delta.name]), None)


def refused(found: Iterable[Delta], allowed: Mapping[str, float]) -> str:
    """Why budgets of values that were compared are none; empty if all are budgets.

    Such a value is divergent beyond its budget, and inconclusive within it.
    """
    names = dict.fromkeys(delta.name for delta in found)
    return refusal({n: allowed[n] for n in names if not shows_a_factor_of_two(allowed[n])})
