"""Audits one candidate: runs all families of cases, judges them, and makes the report."""

import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from msgspec import structs

from sdpo.fixtures import (
    FAMILIES,
    GoldenDataError,
    GoldenFamily,
    load_families,
    packaged_family,
)
from sdpo.parity.audit.forked_processes import (
    ForkedGenerated,
    ForkedResults,
    try_out,
    worth_forking,
)
from sdpo.parity.audit.load_candidate import load_candidate, packaged_bases
from sdpo.parity.audit.request import Request
from sdpo.parity.audit.run_loss_cases import (
    SEEDS,
    judge_loss_case,
    run_loss_case,
    run_loss_family,
)
from sdpo.parity.candidates.implementations import WHOLE, Own
from sdpo.parity.candidates.live_verl import LiveVerl
from sdpo.parity.candidates.loss_functions import LossFunction
from sdpo.parity.capabilities.reach import Reach
from sdpo.parity.cases.checked_call import (
    CandidateError,
    LossCandidate,
)
from sdpo.parity.cases.loss_case import LossCase, loss_cases
from sdpo.parity.cases.stages import NAMES, PROMPT_STAGES, STAGES
from sdpo.parity.compare.evaluated_case import Observation
from sdpo.parity.compare.loss_stages import ORDER
from sdpo.parity.compare.own_precision import (
    precision_rows,
)
from sdpo.parity.compare.statuses import Status, Verdict
from sdpo.parity.compare.verdict import CaseResult
from sdpo.parity.explain.conditional_faults import conditional_faults
from sdpo.parity.explain.diagnosis import diagnosis
from sdpo.parity.explain.explanation_rows import Certificate
from sdpo.parity.explain.explanations import ranked, united
from sdpo.parity.explain.fault_coverage import FEW_TRIES, MOST_TRIES, certificate
from sdpo.parity.explain.first_departure import FROM_LOG_PROBS, Departure, locate
from sdpo.parity.explain.one_setting_only import departs_only
from sdpo.parity.faults.catalogue import possible_faults
from sdpo.parity.generated_runs.run_generated import (
    GeneratedRun,
    cases_within,
    explore,
    fixed_factors,
    run_generated,
)
from sdpo.parity.recorded.teacher_prompts import run_reprompt_family
from sdpo.parity.recorded.updates import run_update_family
from sdpo.parity.relations.check import invariants, violations
from sdpo.parity.relations.relation_rows import RelationRow
from sdpo.parity.report.coverable_stages import beyond_goldens, said
from sdpo.parity.report.declared_deviations import DeclaredError, load_for
from sdpo.parity.report.document import Evidence, Policy, assemble, failed
from sdpo.parity.report.environment import describe_environment, fingerprints
from sdpo.parity.report.report_context import Deviation, PolicyRow
from sdpo.parity.report.run_report import RunReport
from sdpo.parity.trainers.judge.effects import Effect
from sdpo.parity.trainers.recording.adapter_base import TrainerAdapter
from sdpo.settings.determinism import deterministic

_Progress = Callable[[str, int, int], None]


@dataclass
class _Findings:
    """What the audit of a candidate gathered."""

    results: list[CaseResult] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    observations: list[Observation] = field(default_factory=list)
    explained: dict[str, set[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    trainer: list[Effect] = field(default_factory=list)
    invariants: list[RelationRow] = field(default_factory=list)


def audit(request: Request, progress: _Progress = lambda *_: None) -> RunReport:
    """Audit a candidate and return its report; every failure is in the report."""
    started = time.monotonic()
    with deterministic(SEEDS[0]) as settings:
        environment = describe_environment(settings, SEEDS)
        try:
            families = load_goldens(request.goldens)
            declared = load_for(request.declared)
            goldens = [entry for family in families for entry in fingerprints(family)]
            environment = structs.replace(environment, goldens=goldens)
            candidate = load_candidate(request.candidate, request.capabilities, request.timeout)
            run = judge(request, candidate, families, declared, progress)
        except (CandidateError, GoldenDataError, DeclaredError) as error:
            run = failed(request.candidate, request.command, str(error))
    return structs.replace(
        run,
        environment=environment,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - started, 3),
    )


def load_goldens(folders: Sequence[str]) -> list[GoldenFamily]:
    """Load all families of the given folders, or of the packaged data.

    Raises:
        GoldenDataError: a folder or manifest is unusable.
    """
    if not folders:
        return [packaged_family(name) for name in FAMILIES]
    return [family for folder in folders for family in load_families(Path(folder))]


def judge(
    request: Request,
    candidate: LossCandidate | TrainerAdapter,
    families: Sequence[GoldenFamily],
    declared: Sequence[Deviation],
    progress: _Progress,
    *,
    isolation: bool = True,
) -> RunReport:
    """Run all cases and put the report together, environment and times left out.

    Args:
        request: what is asked for.
        candidate: the implementation under test.
        families: the recorded cases.
        declared: the deviations that are declared.
        progress: told a family, the number of its cases done and their total.
        isolation: also run some cases in processes of their own, generated cases, the relations,
            and the certificate. The self-test leaves these out: recorded cases alone must do.
    """
    findings = _Findings()
    if isinstance(candidate, LossFunction):
        try_out(candidate)
    forked: dict[int, ForkedResults] = {}
    generated = None
    if isinstance(candidate, TrainerAdapter):
        _run_trainer(candidate, findings, progress)
    else:
        forked = _fork_updates(candidate, families) if isolation else {}
        if isolation and request.generates and set(candidate.stages) & set(ORDER):
            generated = _GeneratedCases(candidate, request)
        _run_recorded(candidate, families, findings, progress, isolation, forked)
        for run in generated.runs(progress) if generated else ():
            findings.results.extend(run.results)
            findings.doubts.extend(run.doubts)
            findings.observations.extend(run.observations)
            findings.notes.extend(run.notes)
        if isolation:
            findings.invariants.extend(invariants(candidate, progress))
            # one that differs from itself keeps none
            findings.results.extend([] if findings.doubts else violations(findings.invariants))
    faults_shown = _certified(candidate, families, findings) if isolation else None
    _collect_updates(forked, families, findings, progress)
    beyond, precision = (), []
    if not isinstance(candidate, TrainerAdapter):
        precision = precision_rows(findings.observations, candidate.trace if isolation else None)
        beyond = beyond_goldens(candidate.stages, findings.results, families)
    evidence = Evidence(
        request.candidate,
        candidate.kind,
        tuple(candidate.stages),
        findings.results,
        findings.doubts,
        (*candidate.notes, *findings.notes, *said(beyond)),
        candidate.location,
        getattr(candidate, "locations", {}),
        request.command,
        findings.trainer,
        findings.invariants,
        faults_shown,
        precision=precision,
        departs_only=departs_only(findings.observations),
        derives_from=packaged_bases(candidate),
        beyond_goldens=beyond,
        lacks=_lacking(candidate),
        diagnosis=diagnosis(findings.observations),
    )
    fewest = request.min_cases if isinstance(candidate, LossFunction) else 0
    limits = PolicyRow(request.stages, request.require, request.coverage, min_cases=fewest)
    policy = Policy(tuple(declared), limits)
    return assemble(evidence, policy, partial(_departure, candidate, findings))


def _reach(candidate: LossCandidate | TrainerAdapter) -> Reach | None:
    """What a loss function takes; None for any other candidate."""
    return candidate.reach if isinstance(candidate, LossFunction) else None


def _lacking(candidate: LossCandidate | TrainerAdapter) -> list[str]:
    """What a loss function cannot be asked, in words."""
    reach = _reach(candidate)
    return reach.lacks if reach else []


def _certified(
    candidate: LossCandidate | TrainerAdapter,
    families: Sequence[GoldenFamily],
    findings: _Findings,
) -> Certificate | None:
    """Count the known faults that the compared cases show at the candidate's stages."""
    after_log_probs = candidate.kind == FROM_LOG_PROBS
    if isinstance(candidate, TrainerAdapter):
        cases = [
            case for family in families if family.name == "loss" for case in loss_cases(family)
        ]
        return certificate(candidate.stages, cases)
    cases = [observation.evaluated.case for observation in findings.observations]
    tries = FEW_TRIES if _lacking(candidate) else MOST_TRIES
    found = certificate(candidate.stages, cases, after_log_probs=after_log_probs, tries=tries)
    if found is None or not {"aggregate", "gradient"} <= set(candidate.stages):
        return found
    faults = {fault.id for fault in possible_faults(after_log_probs)}
    return structs.replace(found, conditional=conditional_faults(cases, faults))


def _fork_updates(
    candidate: LossCandidate, families: Sequence[GoldenFamily]
) -> dict[int, ForkedResults]:
    """Start the recorded updates in processes beside this one, by the place of their family."""
    return {
        place: ForkedResults(partial(run_update_family, candidate, family))
        for place, family in enumerate(families)
        if family.name == "update" and isinstance(candidate, WHOLE) and worth_forking(len(family))
    }


def _run_recorded(
    candidate: LossCandidate,
    families: Sequence[GoldenFamily],
    findings: _Findings,
    progress: _Progress,
    isolation: bool,
    forked: Container[int],
) -> None:
    """Run all recorded cases of the stages that a candidate exposes.

    Args:
        candidate: the implementation under test.
        families: the recorded cases.
        findings: get the results.
        progress: told a family, the number of its cases done and their total.
        isolation: also run some cases alone, each in a fresh process.
        forked: places of the families that run in other processes.
    """
    exposed = set(candidate.stages)
    for place, family in enumerate(families):
        if family.name == "loss" and exposed & {s for s in NAMES if STAGES[s].family == "loss"}:
            of_loss = run_loss_family(candidate, family, progress, isolation)
            findings.results.extend(of_loss.results)
            findings.doubts.extend(of_loss.doubts)
            findings.observations.extend(of_loss.observations)
        elif family.name == "reprompt":
            _run_prompt_stages(candidate, family, findings, progress)
        elif family.name == "update" and isinstance(candidate, WHOLE) and place not in forked:
            findings.results.extend(run_update_family(candidate, family, progress))


class _GeneratedCases:
    """The cases between the recorded ones, in a process beside where there are two processors."""

    def __init__(self, candidate: LossCandidate, request: Request) -> None:
        self.candidate, self.request = candidate, request
        self.reach = _reach(candidate)
        cases = cases_within(self.reach, request.seed)
        self.forked = ForkedGenerated(self.run, cases) if worth_forking(len(cases)) else None

    def run(self, progress: _Progress = lambda *_: None) -> GeneratedRun:
        """Run them here."""
        run_case, fixed = partial(run_loss_case, self.candidate), fixed_factors(self.candidate)
        return run_generated(run_case, self.request.seed, progress, fixed, self.reach)

    def runs(self, progress: _Progress) -> Iterator[GeneratedRun]:
        """Wait for them, and run further ones for as long as was asked."""
        yield self.forked.run() if self.forked else self.run(progress)
        seed, seconds = self.request.seed, self.request.explore
        if seconds:
            run_case = partial(run_loss_case, self.candidate)
            yield explore(run_case, seed, seconds, progress, self.reach)


def _collect_updates(
    forked: Mapping[int, ForkedResults],
    families: Sequence[GoldenFamily],
    findings: _Findings,
    progress: _Progress,
) -> None:
    """Wait for the updates in other processes; they come after all other cases."""
    for place, process in forked.items():
        family = families[place]
        progress(family.name, 0, len(family))
        findings.results.extend(process.results())
        progress(family.name, len(family), len(family))


def _run_prompt_stages(
    candidate: LossCandidate, family: GoldenFamily, findings: _Findings, progress: _Progress
) -> None:
    """Run settings and teacher prompt of our implementation, or a candidate's prompt functions."""
    stages = tuple(stage for stage in candidate.stages if stage in PROMPT_STAGES)
    if isinstance(candidate, (Own, LiveVerl)):
        findings.results.extend(candidate.config_results(family))
    if stages:
        findings.results.extend(run_reprompt_family(candidate, stages, family, progress))


def _run_trainer(candidate: TrainerAdapter, findings: _Findings, progress: _Progress) -> None:
    """Run a trainer through all scenarios, each in a process of its own.

    Raises:
        CandidateError: what every run needs is not installed or cannot be imported.
    """
    from sdpo.parity.trainers.judge.logged_metrics import compare_logged
    from sdpo.parity.trainers.judge.run_scenarios import differs_from_itself, run_trainer_family
    from sdpo.parity.trainers.probes.relation_pairs import all_scripts
    from sdpo.parity.trainers.probes.relations import trainer_relations
    from sdpo.parity.trainers.probes.run_probes import all_probes, run_probes
    from sdpo.parity.trainers.processes.training_pool import TrainingPool
    from sdpo.parity.trainers.recording.installed import check_ready
    from sdpo.parity.trainers.scenarios.catalogue import SCENARIOS

    check_ready(candidate)
    with TrainingPool(candidate, [*SCENARIOS, *all_probes(), *all_scripts()]) as pool:
        of_trainer = run_trainer_family(pool, progress)
        runs, optimised = of_trainer.runs, of_trainer.optimised
        findings.results.extend(of_trainer.results)
        findings.results.extend(run_probes(pool, runs))
        findings.results.extend(compare_logged(runs, optimised, candidate.loss_metrics))
        findings.doubts.extend(differs_from_itself(pool))
        findings.invariants.extend(trainer_relations(pool, runs))
    findings.observations.extend(of_trainer.observations)
    findings.explained.update(of_trainer.explained)
    findings.notes.extend([*of_trainer.notes, *dict.fromkeys(pool.notes)])
    findings.trainer.extend(of_trainer.effects)


def _departure(
    candidate: LossCandidate | TrainerAdapter,
    findings: _Findings,
    verdict: str,
    observed: str | None,
) -> Departure:
    """Infer where a candidate first departs, and which known faults explain it.

    One that also fails in some cases is explained by those in which it departs.
    """
    if verdict not in (Verdict.DIVERGENT, Verdict.ERROR):
        return Departure(observed)
    departure = Departure(observed)
    if any(o.diverges for o in findings.observations):
        judge_case: Callable[[LossCase], CaseResult] | None = None
        if isinstance(candidate, LossFunction):
            loss_function = candidate
            judge_case = lambda case: judge_loss_case(loss_function, case)  # noqa: E731
        kind, shown = candidate.kind, candidate.stages
        base = candidate.base_settings if isinstance(candidate, LossFunction) else {}
        departure = locate(kind, shown, findings.observations, observed, judge_case, base)
    if not isinstance(candidate, TrainerAdapter):
        return departure
    in_loss = {explanation.fault: explanation.cases for explanation in departure.explanations}
    scenarios = [result for result in findings.results if result.family == "trainer"]
    diverging = sum(Status.DIVERGENT in {c.status for c in r.comparisons} for r in scenarios)
    return replace(departure, explanations=ranked(united(findings.explained, in_loss), diverging))
