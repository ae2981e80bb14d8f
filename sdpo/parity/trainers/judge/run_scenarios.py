"""Trains a candidate through all scenarios, and compares each training stage by stage."""

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sdpo.parity.cases.checked_call import CandidateError, NotCoveredError
from sdpo.parity.compare.comparison import Comparison
from sdpo.parity.compare.evaluated_case import Observation
from sdpo.parity.compare.statuses import Status
from sdpo.parity.compare.verdict import CaseResult
from sdpo.parity.explain.explanations import fewest, in_all, united
from sdpo.parity.explain.match_faults import Search, explain
from sdpo.parity.trainers.judge.effects import Effect, effect_of
from sdpo.parity.trainers.judge.follow_training import FollowedTraining
from sdpo.parity.trainers.judge.reference_run import reference_batch
from sdpo.parity.trainers.processes.ranks import first_apart
from sdpo.parity.trainers.processes.training_pool import TrainingPool
from sdpo.parity.trainers.recording.adapter_base import ScenarioRunner
from sdpo.parity.trainers.recording.hf_trainer import TrainingFailedError
from sdpo.parity.trainers.recording.quiet_packages import quiet
from sdpo.parity.trainers.scenarios.catalogue import SCENARIOS
from sdpo.parity.trainers.scenarios.scenario import Scenario
from sdpo.parity.trainers.scenarios.training_record import (
    TrainerRun,
)

_Progress = Callable[[str, int, int], None]


@dataclass
class TrainerFindings:
    """What the scenarios gave."""

    results: list[CaseResult] = field(default_factory=list)
    observations: list[Observation] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    explained: dict[str, set[str]] = field(default_factory=dict)
    """Scenarios that each known fault explains."""
    in_loss: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    trains: bool = False
    """Whether the trainer is known to train, so that a later failure is telling."""
    runs: dict[str, TrainerRun] = field(default_factory=dict)
    optimised: dict[str, list[float | None]] = field(default_factory=dict)


def run_trainer_family(
    candidate: ScenarioRunner, progress: _Progress, scenarios: Sequence[Scenario] = SCENARIOS
) -> TrainerFindings:
    """Train a candidate through all scenarios and compare it with the reference.

    Args:
        candidate: a trainer adapter, or the pool of processes that stands for one.
        progress: told the family, the number of scenarios done and their total.
        scenarios: the scripts.
    """
    findings = TrainerFindings()
    with quiet():
        for number, scenario in enumerate(scenarios):
            progress("trainer", number, len(scenarios))
            with tempfile.TemporaryDirectory(prefix="sdpo-trainer-") as folder:
                _run_scenario(candidate, scenario, Path(folder), findings)
    progress("trainer", len(scenarios), len(scenarios))
    findings.explained = united(findings.explained, fewest(findings.in_loss))
    return findings


def _run_scenario(
    candidate: ScenarioRunner, scenario: Scenario, folder: Path, findings: TrainerFindings
) -> None:
    """Run one scenario, with its explanation and effect; whatever fails is a finding."""
    result, training = follow(candidate, scenario, folder, trains=findings.trains)
    findings.results.append(result)
    if training is None:
        return
    run = training.run
    findings.runs[scenario.id], findings.trains = run, True
    findings.optimised[scenario.id] = training.optimised
    findings.observations.extend(training.observations)
    explanations = explain(training.observations, search=Search(work_left=0))
    in_loss = [explanation.label for explanation in explanations]
    outside, first_loss = in_all(training.faults_tried), next(iter(training.optimised), None)
    labels, natural = [*outside, *in_loss], training.natural()
    findings.effects.append(effect_of(scenario, run, natural, result, labels, first_loss))
    findings.in_loss[scenario.id] = in_loss
    findings.explained = united(findings.explained, {label: [scenario.id] for label in outside})
    _add_new(findings.notes, [*run.notes, *_other_rows(scenario, run)])


def _failure(scenario: Scenario, error: CandidateError, *, trains: bool) -> Comparison:
    """Report a training that failed: an error, since nothing can be said of the trainer.

    One that trains, but fails or hangs as soon as there are several processes, deviates from the
    reference, which does not.
    """
    if trains and scenario.processes > 1 and isinstance(error, TrainingFailedError):
        return Comparison(
            error.reached,
            Status.DIVERGENT,
            scenario.id,
            compared=1,
            note=str(error),
            effect="failure",
        )
    return Comparison(error.stage, Status.ERROR, scenario.id, note=str(error))


def follow(
    candidate: ScenarioRunner, scenario: Scenario, folder: Path, *, trains: bool
) -> tuple[CaseResult, FollowedTraining | None]:
    """Train through a scenario, and compare what was recorded.

    Args:
        candidate: the trainer.
        scenario: the script.
        folder: an empty one for the run.
        trains: whether the trainer is known to train, so that a failure is telling.

    Returns:
        The comparisons, and the training that they are of; None if it failed.
    """
    result = CaseResult(scenario.id, "trainer", scenario.tags)
    try:
        run = candidate.run(scenario, folder)
    except NotCoveredError as error:
        result.note = f"not covered: {error}"
        return result, None
    except CandidateError as error:
        result.comparisons.append(_failure(scenario, error, trains=trains))
        if (
            result.status == Status.DIVERGENT
            and (so_far := getattr(error, "run", None)) is not None
        ):
            result.comparisons.extend(_prompts_so_far(scenario, so_far, folder))
        return result, None
    training = FollowedTraining(scenario, run, folder)
    try:
        result.comparisons.extend(training.comparisons())
    except (KeyError, ValueError) as error:
        note = f"what the adapter recorded cannot be compared: {type(error).__name__}: {error}"
        result.comparisons.append(Comparison("accumulate", Status.ERROR, scenario.id, note=note))
        return result, None
    return result, training


def _prompts_so_far(scenario: Scenario, run: TrainerRun, folder: Path) -> list[Comparison]:
    """Compare the prompt stages of a training that failed later."""
    training, first = FollowedTraining(scenario, run, folder), scenario.generations[0]
    batch, prompt = reference_batch(scenario, first, training.tokenizer)
    return training.compare_prompts(first, run.updates[0], prompt, batch)


def differs_from_itself(pool: TrainingPool, scenario: Scenario = SCENARIOS[0]) -> list[str]:
    """Say whether two runs of a scenario differ, in one process under different global seeds."""
    try:
        runs = pool.runs(scenario)
    except (NotCoveredError, CandidateError):
        return []
    first, second = (run.updates[-1].steps[-1].parameters for run in runs)
    if first_apart(first, second):
        return [f"two runs of scenario {scenario.id} end with different weights"]
    return []


def _other_rows(scenario: Scenario, run: TrainerRun) -> list[str]:
    """Say whether micro-batches hold other rows than consecutive ones of the generation."""
    size, of_generation = scenario.micro_batch_size, len(scenario.generations[0].rollouts)
    for update in run.updates:
        rows = [micro_batch.rows for step in update.steps for micro_batch in step.micro_batches]
        starts = [start % of_generation for start in range(0, size * len(rows), size)]
        if rows != [list(range(start, start + size)) for start in starts]:
            return [
                "micro-batches hold other rows of a generation than the reference's consecutive "
                "ones; the reference is given the same rows"
            ]
    return []


def _add_new(known: list[str], notes: Iterable[str]) -> None:
    """Add the notes that are not known yet, in place."""
    known.extend(note for note in dict.fromkeys(notes) if note not in known)
