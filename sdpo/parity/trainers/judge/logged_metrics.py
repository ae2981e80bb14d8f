"""Checks that a trainer logs what it optimised: three checks over all runs, reported as probes.

What was optimised is the sum of the micro-batches' losses, each times the scale that was found on
its gradient, and not what the trainer believes. A metric of its own is a mean by its nature.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sdpo.parity.compare.comparison import Comparison
from sdpo.parity.compare.statuses import Status
from sdpo.parity.compare.verdict import CaseResult
from sdpo.parity.trainers.judge.effects import mean_loss
from sdpo.parity.trainers.scenarios.training_record import OptimizerStep, TrainerRun
from sdpo.parity.truth.tolerances import TOLERANCES

LOSS, METRIC, NORM = "C31", "C32", "C33"
QUESTIONS = {
    LOSS: "is the logged loss what was optimised?",
    METRIC: "is the trainer's own metric of the loss the mean over its micro-batches?",
    NORM: "is the logged norm that of the gradient before clipping?",
}
_STAGES = {LOSS: "aggregate", METRIC: "aggregate", NORM: "accumulate"}

_Optimised = Mapping[str, Sequence[float | None]]


@dataclass(frozen=True)
class Logged:
    """A logged number beside the one that was expected."""

    scenario: str
    name: str
    actual: float
    expected: float

    @property
    def wrong(self) -> bool:
        """Tell whether they differ by more than rounding."""
        if math.isnan(self.expected) or math.isnan(self.actual):
            return math.isnan(self.expected) != math.isnan(self.actual)
        limit = TOLERANCES.logged_absolute + TOLERANCES.logged_relative * abs(self.expected)
        return abs(self.actual - self.expected) > limit

    @property
    def distance(self) -> float:
        """Measure how far they are apart; 0 if one of the two is not finite."""
        distance = abs(self.actual - self.expected)
        return distance if math.isfinite(distance) else 0.0


def compare_logged(
    runs: Mapping[str, TrainerRun], optimised: _Optimised, metrics: Sequence[str]
) -> list[CaseResult]:
    """Run the three checks.

    Args:
        runs: of the scenarios, by id.
        optimised: per scenario and optimizer step what was optimised; None where that is unknown.
        metrics: names under which the trainer logs its loss itself.
    """
    numbers = {
        LOSS: list(_losses(runs, optimised)),
        METRIC: [logged for name in metrics for logged in _metrics(runs, name)],
        NORM: list(_norms(runs)),
    }
    return [_result_of(check, entries) for check, entries in numbers.items()]


def _result_of(check: str, entries: Sequence[Logged]) -> CaseResult:
    """Report one check: the number that is farthest off, of those that are wrong."""
    result = CaseResult(check, "probe", ("probe", "logged"))
    if not entries:
        result.note = f"not covered: {QUESTIONS[check]} nothing of it is logged"
        return result
    wrong = [entry for entry in entries if entry.wrong]
    if not wrong:
        result.comparisons.append(Comparison(_STAGES[check], Status.MATCH, check, len(entries)))
        return result
    worst = max(wrong, key=lambda entry: entry.distance)
    where = ", ".join(dict.fromkeys(entry.scenario for entry in wrong))
    note = f"{QUESTIONS[check]} {worst.name} is not, in {where}"
    shown = {"value": worst.name, "actual": worst.actual, "expected": worst.expected}
    result.comparisons.append(
        Comparison(
            _STAGES[check],
            Status.DIVERGENT,
            check,
            len(entries),
            max_abs=worst.distance,
            worst=shown,
            note=note,
            effect="value",
        )
    )
    return result


def _steps_of(run: TrainerRun) -> Iterator[OptimizerStep]:
    """Yield all optimizer steps of a run."""
    for update in run.updates:
        yield from update.steps


def _losses(runs: Mapping[str, TrainerRun], optimised: _Optimised) -> Iterator[Logged]:
    """Yield the logged loss of every step."""
    for name, run in runs.items():
        for step, expected in zip(_steps_of(run), optimised.get(name, ()), strict=False):
            if "loss" in step.logged and expected is not None:
                yield Logged(name, "loss", step.logged["loss"], expected)


def _metrics(runs: Mapping[str, TrainerRun], metric: str) -> Iterator[Logged]:
    """Yield a trainer's own metric of every step, a mean over micro-batches, in one process."""
    for name, run in runs.items():
        for step in _steps_of(run):
            expected = mean_loss(micro_batch.values for micro_batch in step.micro_batches)
            if metric in step.logged and expected is not None and not run.ranks:
                yield Logged(name, metric, step.logged[metric], expected)


def _norms(runs: Mapping[str, TrainerRun]) -> Iterator[Logged]:
    """Yield the logged norm of every step."""
    for name, run in runs.items():
        for step in _steps_of(run):
            if "grad_norm" in step.logged and step.gradient:
                squares = sum(g.double().square().sum().item() for g in step.gradient.values())
                expected = math.sqrt(squares) if squares == squares else math.nan
                yield Logged(name, "grad_norm", step.logged["grad_norm"], expected)
