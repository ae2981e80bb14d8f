"""Runs the causal probes: each changes one input alone, and checks what moves in a trainer.

An input that matters must move the named values by more than rounding, one that does not must leave
them bit-equal. This finds a part that is computed but has no effect, and an effect that nobody
declared. The scenarios compare how far a value moves; a probe compares the direction in which the
loss moves, and the order of magnitude.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from sdpo.parity.cases.checked_call import CandidateError, NotCoveredError
from sdpo.parity.compare.comparison import Comparison
from sdpo.parity.compare.evaluated_case import evaluate_case
from sdpo.parity.compare.statuses import Status
from sdpo.parity.compare.verdict import CaseResult
from sdpo.parity.recorded.roundings import equal, moved
from sdpo.parity.trainers.judge.effects import mean_loss
from sdpo.parity.trainers.judge.loss_stages import loss_case
from sdpo.parity.trainers.probes.catalogue import PROBES, Probe
from sdpo.parity.trainers.probes.changed_experiment import (
    Refusal,
    unseen_settings,
    why_one_experiment,
)
from sdpo.parity.trainers.recording.adapter_base import ScenarioRunner
from sdpo.parity.trainers.recording.quiet_packages import quiet
from sdpo.parity.trainers.scenarios.catalogue import BY_ID
from sdpo.parity.trainers.scenarios.scenario import Scenario
from sdpo.parity.trainers.scenarios.training_record import TrainerRun, Update
from sdpo.parity.truth.tolerances import TOLERANCES


def all_probes() -> list[Scenario]:
    """Return the changed scenarios of all probes."""
    return [probe.change(BY_ID[probe.base]) for probe in PROBES]


def run_probes(candidate: ScenarioRunner, runs: dict[str, TrainerRun]) -> list[CaseResult]:
    """Run all probes on a trainer; a base that is not among the `runs` is run once and added."""
    return [run_probe(candidate, probe, runs) for probe in PROBES]


def run_probe(candidate: ScenarioRunner, probe: Probe, runs: dict[str, TrainerRun]) -> CaseResult:
    """Run the base and the changed scenario of a probe, and compare them."""
    base = BY_ID[probe.base]
    result = CaseResult(probe.id, "probe", (*base.tags, "probe"))
    try:
        if probe.base not in runs:
            runs[probe.base] = train(candidate, base)
        changed = train(candidate, probe.change(base))
    except NotCoveredError as error:
        result.note = f"not covered: {probe.question} {error}"
        return result
    except CandidateError as error:
        result.comparisons.append(Comparison(error.stage, Status.ERROR, probe.id, note=str(error)))
        return result
    refused = why_one_experiment(base, probe.change(base), runs[probe.base], changed)
    if refused is None and not probe.moves:
        refused = unseen_settings(base, probe.change(base), changed)
    if refused is None and probe.moves and not _shows(probe.moves, runs[probe.base], changed):
        refused = Refusal(Status.NOT_COVERED, f"the trainer shows none of {', '.join(probe.moves)}")
    if refused is None:
        result.comparisons.extend(_compare_values(probe, runs[probe.base], changed))
    elif refused.status == Status.NOT_COVERED:
        result.note = f"not covered: {probe.question} {refused.note}"
    else:
        result.comparisons.append(
            Comparison(probe.stage, Status.ERROR, probe.id, note=refused.note)
        )
    return result


def _shows(names: Iterable[str], *runs: TrainerRun) -> bool:
    """Tell whether all runs show some of the named values, so that a move of it would be seen."""
    return any(all(_value_of(run, name) is not None for run in runs) for name in names)


def _moves_to(scenario: Scenario, run: TrainerRun) -> tuple[float, float] | None:
    """Take the loss of the first optimizer step: the trainer's, and the reference's on its logits.

    None if the trainer shows no loss.
    """
    update = run.updates[0]
    step = update.steps[0]
    loss = mean_loss(m.values for m in step.micro_batches)
    mask = update.prompt.get("distillation_mask")
    if loss is None or mask is None:
        return None
    reference_losses = []
    for micro in step.micro_batches:
        signal = torch.tensor([float(mask[row]) for row in micro.rows])
        old = None if scenario.on_policy else micro.inputs.get("old_log_probs")
        if old is None and not scenario.on_policy:
            return None
        case = loss_case(scenario, scenario.id, micro, old, signal)
        reference_losses.append(evaluate_case(case).reference["aggregate"].item())
    return loss, sum(reference_losses) / len(reference_losses)


def wrong_way(probe: Probe, before: TrainerRun, after: TrainerRun) -> list[str]:
    """Tell how the change of the loss differs from the reference's, if it does by far."""
    base = BY_ID[probe.base]
    points = [_moves_to(base, before), _moves_to(probe.change(base), after)]
    if points[0] is None or points[1] is None:
        return []
    ours, theirs = (now - then for then, now in zip(*points, strict=True))
    factor = TOLERANCES.probe_loss_factor
    if theirs == 0 or 1 / factor <= ours / theirs <= factor:
        return []
    return [f"aggregate moves by {ours:.3g} where the reference's moves by {theirs:.3g}"]


def train(candidate: ScenarioRunner, scenario: Scenario) -> TrainerRun:
    """Train through one scenario.

    Raises:
        NotCoveredError: the trainer cannot express the scenario.
        CandidateError: the trainer failed.
    """
    torch.manual_seed(0)
    with quiet(), TemporaryDirectory(prefix="sdpo-probe-") as folder:
        return candidate.run(scenario, Path(folder))


def _compare_values(probe: Probe, before: TrainerRun, after: TrainerRun) -> Iterator[Comparison]:
    """Compare what had to move and what had to stay; one comparison per probe."""
    wrong, compared = [], 0
    for names, must_move in ((probe.moves, True), (probe.stays, False)):
        for name in names:
            ours, theirs = _value_of(before, name), _value_of(after, name)
            if ours is None or theirs is None:
                continue
            compared += 1
            if not (moved(ours, theirs) if must_move else equal(ours, theirs)):
                wrong.append(f"{name} {'does not move' if must_move else 'moves'}")
    if not compared:
        return
    if probe.directed and not wrong:
        wrong += wrong_way(probe, before, after)
    if wrong:
        note = f"{probe.question} {', '.join(wrong)}"
        worst = {"value": probe.question, "actual": ", ".join(wrong), "expected": "the opposite"}
        yield Comparison(
            probe.stage,
            Status.DIVERGENT,
            probe.id,
            compared,
            worst=worst,
            note=note,
            effect="value",
        )
    else:
        yield Comparison(probe.stage, Status.MATCH, probe.id, compared)


def _value_of(run: TrainerRun, name: str) -> Any:
    """Read a named value of an update; None if the trainer does not show it."""
    name, _, number = name.partition("@")
    update = run.updates[int(number or 0)]
    if name in update.prompt:
        return update.prompt[name]
    return _of_weights(update, name) if name in _WEIGHTS else _of_micro_batches(update, name)


_WEIGHTS = ("accumulate", "parameters", "teacher_update")


def _of_weights(update: Update, name: str) -> Any:
    """Read the first gradient, the last weights, or the teacher of an update."""
    if name == "accumulate":
        return update.steps[0].gradient
    return update.steps[-1].parameters if name == "parameters" else update.teacher or None


def _of_micro_batches(update: Update, name: str) -> list[Tensor] | None:
    """Read a value of all micro-batches of an update, at the tokens of the responses."""
    values = []
    for step in update.steps:
        for micro_batch in step.micro_batches:
            if name.endswith("_logits"):
                mask = micro_batch.inputs["response_mask"] != 0
                value = micro_batch.logits.get(name.removesuffix("_logits"))
                value = None if value is None else value[mask]
            else:
                value = micro_batch.values.get(name)
            if value is None:
                return None
            values.append(value)
    return values
