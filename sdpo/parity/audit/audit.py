"""The audit of one candidate: all families of cases, verdict, and the RUN document."""

import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from msgspec import structs

from sdpo.fixtures import (
    FAMILIES,
    GoldenDataError,
    GoldenFamily,
    load_families,
    packaged_family,
)
from sdpo.parity.audit.forked_updates import ForkedWork, worth_forking
from sdpo.parity.audit.fresh_process import Alone
from sdpo.parity.audit.load_candidate import load_candidate, packaged_bases
from sdpo.parity.audit.request import Request
from sdpo.parity.candidates.implementations import WHOLE, Own
from sdpo.parity.candidates.live_verl import LiveVerl
from sdpo.parity.candidates.loss_functions import LossFunction
from sdpo.parity.cases.checked_call import (
    BrokenGradientError,
    CandidateError,
    LossCandidate,
    NotCoveredError,
)
from sdpo.parity.cases.loss_case import LossCase, loss_cases
from sdpo.parity.cases.stages import NAMES, PROMPT_STAGES, STAGES
from sdpo.parity.compare.comparison import Comparison
from sdpo.parity.compare.evaluated_case import Observation, evaluate_case
from sdpo.parity.compare.loss_stages import compare_loss, stage_of
from sdpo.parity.compare.nondeterminism import Scatter, scatter, withdrawn
from sdpo.parity.compare.own_precision import (
    JUDGED_IN_FLOAT32,
    in_float32,
    measured,
    precision_rows,
)
from sdpo.parity.compare.statuses import FAILING, Status, Verdict
from sdpo.parity.compare.value_dtypes import other_dtypes
from sdpo.parity.compare.verdict import CaseResult
from sdpo.parity.explain.explanations import ranked, united
from sdpo.parity.explain.fault_coverage import certificate
from sdpo.parity.explain.first_departure import FROM_LOG_PROBS, Departure, locate
from sdpo.parity.explain.one_setting_only import departs_only
from sdpo.parity.recorded.teacher_prompts import run_reprompt_family
from sdpo.parity.recorded.updates import run_update_family
from sdpo.parity.relations.check import invariants
from sdpo.parity.relations.relation_rows import RelationRow
from sdpo.parity.report.coverable_stages import beyond_goldens, said
from sdpo.parity.report.declared_deviations import DeclaredError, load_for
from sdpo.parity.report.document import Evidence, Policy, assemble, failed
from sdpo.parity.report.environment import describe_environment, fingerprints
from sdpo.parity.report.report_context import Deviation, PolicyRow
from sdpo.parity.report.run_report import RunReport
from sdpo.parity.trainers.judge.effects import Effect
from sdpo.parity.trainers.recording.adapter_base import TrainerAdapter
from sdpo.settings.determinism import deterministic, reseed

SEEDS = (20260, 20261)

Progress = Callable[[str, int, int], None]


@dataclass
class Findings:
    """What the audit of a candidate gathered."""

    results: list[CaseResult] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    observations: list[Observation] = field(default_factory=list)
    explained: dict[str, set[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    trainer: list[Effect] = field(default_factory=list)
    invariants: list[RelationRow] = field(default_factory=list)


def audit(request: Request, progress: Progress = lambda *_: None) -> RunReport:
    """Audit a candidate and return its report; every failure is in the report."""
    started = time.monotonic()
    with deterministic(SEEDS[0]) as settings:
        environment = describe_environment(settings, SEEDS)
        try:
            families = load_goldens(request.goldens)
            declared = load_for(request.declared)
            goldens = [entry for family in families for entry in fingerprints(family)]
            environment = structs.replace(environment, goldens=goldens)
            candidate = load_candidate(request.candidate)
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
    """All families of the given folders, or of the packaged data.

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
    progress: Progress,
    *,
    isolation: bool = True,
) -> RunReport:
    """Run all cases and put the report together, environment and times left out.

    `isolation` also runs some cases in processes of their own. The self-test leaves out that, the
    invariants and the certificate, which do not enter a verdict.
    """
    findings = Findings()
    beside: dict[int, ForkedWork] = {}
    if isinstance(candidate, TrainerAdapter):
        run_scenarios(candidate, findings, progress)
    else:
        beside = started_beside(candidate, families) if isolation else {}
        run_recorded(candidate, families, findings, progress, isolation, beside)
        findings.invariants.extend(invariants(candidate, progress) if isolation else [])
    proved = certified(candidate, families) if isolation else None
    collect(beside, families, findings, progress)
    beyond: tuple[str, ...] = ()
    if not isinstance(candidate, TrainerAdapter):
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
        proved,
        precision=precision_of(candidate, findings, isolation),
        departs_only=departs_only(findings.observations),
        derives_from=packaged_bases(candidate),
        beyond_goldens=beyond,
    )
    limits = PolicyRow(request.stages, request.require, request.coverage)
    policy = Policy(tuple(declared), limits)
    return assemble(evidence, policy, partial(departure, candidate, findings))


def precision_of(
    candidate: LossCandidate | TrainerAdapter, findings: Findings, search: bool
) -> list[dict[str, Any]]:
    """Where a loss computes in less than it is given; `search` runs some cases again."""
    if isinstance(candidate, TrainerAdapter):
        return []
    return precision_rows(findings.observations, candidate.trace if search else None)


def certified(
    candidate: LossCandidate | TrainerAdapter, families: Sequence[GoldenFamily]
) -> dict[str, Any] | None:
    """How many known faults the loss cases show at the candidate's stages."""
    cases = [case for family in families if family.name == "loss" for case in loss_cases(family)]
    from_log_probs = candidate.kind == FROM_LOG_PROBS
    return certificate(candidate.stages, cases, after_log_probs=from_log_probs)


def started_beside(
    candidate: LossCandidate, families: Sequence[GoldenFamily]
) -> dict[int, ForkedWork]:
    """Families, by their place, whose cases run in a process beside this one from now on."""
    return {
        place: ForkedWork(partial(run_update_family, candidate, family))
        for place, family in enumerate(families)
        if family.name == "update" and isinstance(candidate, WHOLE) and worth_forking(len(family))
    }


def run_recorded(
    candidate: LossCandidate,
    families: Sequence[GoldenFamily],
    findings: Findings,
    progress: Progress,
    isolation: bool,
    beside: Container[int],
) -> None:
    """All recorded cases of the stages that the candidate exposes, but those that run beside."""
    exposed = set(candidate.stages)
    for place, family in enumerate(families):
        if family.name == "loss" and exposed & {s for s in NAMES if STAGES[s].family == "loss"}:
            run_loss_family(candidate, family, findings, progress, isolation)
        elif family.name == "reprompt":
            run_prompt_stages(candidate, family, findings, progress)
        elif family.name == "update" and isinstance(candidate, WHOLE) and place not in beside:
            findings.results.extend(run_update_family(candidate, family, progress))


def collect(
    beside: Mapping[int, ForkedWork],
    families: Sequence[GoldenFamily],
    findings: Findings,
    progress: Progress,
) -> None:
    """Wait for the cases that run beside this process; they come after all others."""
    for place, process in beside.items():
        family = families[place]
        progress(family.name, 0, len(family))
        findings.results.extend(process.results())
        progress(family.name, len(family), len(family))


def run_loss_family(
    candidate: LossCandidate,
    family: GoldenFamily,
    findings: Findings,
    progress: Progress,
    isolation: bool = True,
) -> None:
    """All loss cases of a family, with the candidate's own determinism checked on the way."""
    cases, results, scatters = loss_cases(family), [], []
    alone = [Alone(candidate, case) for case in cases[-2:]] if isolation else []
    for number, case in enumerate(cases):
        progress(family.name, number, len(cases))
        result, doubt, own = run_loss_case(candidate, case, findings.observations)
        results.append(result)
        scatters.append(own)
        findings.doubts.extend(doubt)
    findings.results.extend(withdrawn(results, scatters))
    for check in alone:
        findings.doubts.extend(check.doubt())
    progress(family.name, len(cases), len(cases))


def run_loss_case(
    candidate: LossCandidate, case: LossCase, observations: list[Observation] | None = None
) -> tuple[CaseResult, list[str], Scatter]:
    """One case, run twice under different global seeds; disagreement with itself is a doubt.

    Values that differ between the two runs are not compared.

    The candidate's values are added to `observations`.
    """
    complaint, evaluated = "", evaluate_case(case)
    result = CaseResult(case.id, "loss", case.tags)
    doubts: list[str] = []
    try:
        reseed(SEEDS[0])
        trace = candidate.trace(case)
        reseed(SEEDS[1])
        again = candidate.trace(case)
    except NotCoveredError as error:
        result.note = str(error)
        return result, doubts, {}
    except CandidateError as error:
        note = f"{error}; the reference computes this case"
        result.comparisons.append(Comparison(error.stage, Status.ERROR, case.id, note=note))
        return result, doubts, {}
    except BrokenGradientError as error:
        trace = again = error.trace
        complaint = str(error)
        result.comparisons.append(Comparison("gradient", Status.DIVERGENT, case.id, note=complaint))
    own = scatter(trace, again)
    if own:
        result.note = f"two runs of case {case.id} differ at {next(iter(own))}"
        doubts.append(result.note)
        # what differs from itself has no value that could be compared
        trace = {name: value for name, value in trace.items() if name not in own}
    compared, precision = compare_loss(evaluated, trace), {}
    wrong_dtypes = other_dtypes(candidate, case.id, trace, evaluated.reference, stage_of)
    if case.dtype == torch.float64 and any(c.status == Status.DIVERGENT for c in compared):
        precision = measured(candidate.trace, case)
    if in_float32(precision):
        evaluated, result.note = evaluated.single, result.note or JUDGED_IN_FLOAT32
        compared = compare_loss(evaluated, trace)
    result.comparisons.extend([*compared, *wrong_dtypes])
    if observations is not None:
        diverges = result.status in FAILING
        values = evaluated.agreement.values_of(trace)
        observations.append(
            Observation(evaluated, diverges, values, complaint, case.dtype, precision)
        )
    return result, doubts, own


def run_prompt_stages(
    candidate: LossCandidate, family: GoldenFamily, findings: Findings, progress: Progress
) -> None:
    """Settings and teacher prompt of our implementation, or a candidate's prompt functions."""
    stages = tuple(stage for stage in candidate.stages if stage in PROMPT_STAGES)
    if isinstance(candidate, (Own, LiveVerl)):
        findings.results.extend(candidate.config_results(family))
    if stages:
        findings.results.extend(run_reprompt_family(candidate, stages, family, progress))


def run_scenarios(candidate: TrainerAdapter, findings: Findings, progress: Progress) -> None:
    """All scenarios through a trainer, each in a process of its own.

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
    with TrainingPool(candidate, [*SCENARIOS, *all_probes(), *all_scripts()]) as apart:
        found = run_trainer_family(apart, progress)
        findings.results.extend(found.results)
        findings.results.extend(run_probes(apart, found.runs))
        findings.results.extend(compare_logged(found.runs, found.optimised, candidate.loss_metrics))
        findings.doubts.extend(differs_from_itself(apart))
        findings.invariants.extend(trainer_relations(apart, found.runs))
    findings.observations.extend(found.observations)
    findings.explained.update(found.explained)
    findings.notes.extend([*found.notes, *dict.fromkeys(apart.notes)])
    findings.trainer.extend(found.effects)


def departure(
    candidate: LossCandidate | TrainerAdapter,
    findings: Findings,
    verdict: str,
    observed: str | None,
) -> Departure:
    """Where a divergent candidate first departs, and the known faults that explain it."""
    if verdict != Verdict.DIVERGENT:
        return Departure(observed)
    found = Departure(observed)
    if any(o.diverges for o in findings.observations):
        judge_case = partial(judged, candidate) if isinstance(candidate, LossFunction) else None
        kind, shown = candidate.kind, candidate.stages
        found = locate(kind, shown, findings.observations, observed, judge_case)
    if not isinstance(candidate, TrainerAdapter):
        return found
    cases = united(findings.explained, {one.fault: one.cases for one in found.explanations})
    scenarios = [result for result in findings.results if result.family == "trainer"]
    diverging = sum(Status.DIVERGENT in {c.status for c in r.comparisons} for r in scenarios)
    return replace(found, explanations=ranked(cases, diverging))


def judged(candidate: LossCandidate, case: LossCase) -> CaseResult:
    """The comparisons of one further case."""
    return run_loss_case(candidate, case)[0]
