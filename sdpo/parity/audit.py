"""The audit of one candidate: all families of cases, verdict, and the RUN document."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from sdpo.determinism import deterministic, reseed
from sdpo.fixtures import PACKAGED, GoldenDataError, GoldenFamily, load_families
from sdpo.parity import declared as declarations
from sdpo.parity.adapters.base import (
    BrokenGradientError,
    CandidateError,
    LossCandidate,
    NotCoveredError,
    same_bits,
)
from sdpo.parity.adapters.callables import LossFunction
from sdpo.parity.adapters.load import load_candidate
from sdpo.parity.adapters.own import WHOLE, Own
from sdpo.parity.adapters.stage_functions import PROMPT_STAGES
from sdpo.parity.alone import Alone
from sdpo.parity.case import LossCase
from sdpo.parity.compare import DIVERGENT, ERROR, NOT_COVERED, Comparison
from sdpo.parity.config_family import run_config_family
from sdpo.parity.environment import describe_environment, fingerprint
from sdpo.parity.locate import Departure, locate
from sdpo.parity.loss_family import compare_loss
from sdpo.parity.prepared import Observation, loss_cases, prepared, values_of
from sdpo.parity.reprompt_family import run_reprompt_family
from sdpo.parity.stages import NAMES, STAGES, first_in_order
from sdpo.parity.update_family import run_update_family
from sdpo.parity.verdict import EXIT_CODES, CaseResult, run_verdict, stage_rows

SEEDS = (20260, 20261)

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Request:
    """What the user asked for; `goldens` and `declared` are paths, `stages` names."""

    candidate: str
    goldens: tuple[str, ...] = ()
    declared: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()
    repro: str = ""

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> "Request":
        """A request from a JSON document."""
        lists = {name: tuple(fields[name]) for name in ("goldens", "declared", "stages")}
        return cls(candidate=fields["candidate"], repro=fields["repro"], **lists)


@dataclass
class Findings:
    """What the audit of a candidate gathered."""

    results: list[CaseResult] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    observations: list[Observation] = field(default_factory=list)


def audit(request: Request, progress: Progress = lambda *_: None) -> dict[str, Any]:
    """Audit a candidate and return its RUN document; every failure is in the document."""
    started = time.monotonic()
    with deterministic(SEEDS[0]) as settings:
        environment = describe_environment(settings, SEEDS)
        try:
            families = load_goldens(request.goldens)
            declared = load_declarations(request.declared)
            environment["goldens"] = [fingerprint(family) for family in families]
            candidate = load_candidate(request.candidate)
            run = judge(request, candidate, families, declared, progress)
        except (CandidateError, GoldenDataError, declarations.DeclaredError) as error:
            run = failed(request, str(error))
    return run | {
        "environment": environment,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - started, 3),
    }


def load_goldens(folders: Sequence[str]) -> list[GoldenFamily]:
    """All families of the given folders, or of the packaged data.

    Raises:
        GoldenDataError: a folder or manifest is unusable.
    """
    return [family for folder in folders or (PACKAGED,) for family in load_families(Path(folder))]


def load_declarations(files: Sequence[str]) -> list[declarations.Deviation]:
    """Declared deviations of the given files, or the packaged ones.

    Raises:
        DeclaredError: a file is unusable.
    """
    paths = [Path(file) for file in files] or [declarations.PACKAGED]
    return [entry for path in paths for entry in declarations.load_declared(path)]


def judge(
    request: Request,
    candidate: LossCandidate,
    families: Sequence[GoldenFamily],
    declared: Sequence[declarations.Deviation],
    progress: Progress,
    *,
    isolation: bool = True,
) -> dict[str, Any]:
    """Run all cases and put the RUN document together, environment and times left out.

    `isolation` also runs some cases alone in fresh processes.
    """
    findings = Findings()
    exposed = set(candidate.stages)
    for family in families:
        if family.name == "loss" and exposed & {s for s in NAMES if STAGES[s].family == "loss"}:
            run_loss_family(candidate, family, findings, progress, isolation)
        elif family.name == "reprompt":
            run_prompt_stages(candidate, family, findings, progress)
        elif family.name == "update" and isinstance(candidate, WHOLE):
            findings.results.extend(run_update_family(candidate, family, progress))
    apply_declarations(request.candidate, declared, findings)
    select_stages(request.stages, findings)
    return document(request, candidate, findings, declared)


def run_loss_family(
    candidate: LossCandidate,
    family: GoldenFamily,
    findings: Findings,
    progress: Progress,
    isolation: bool = True,
) -> None:
    """All loss cases of a family, with the candidate's own determinism checked on the way."""
    cases = loss_cases(family)
    alone = [Alone(candidate, case) for case in cases[-2:]] if isolation else []
    for number, case in enumerate(cases):
        progress(family.name, number, len(cases))
        result, doubt = run_loss_case(candidate, case, findings.observations)
        findings.results.append(result)
        findings.doubts.extend(doubt)
    for check in alone:
        findings.doubts.extend(check.doubt())
    progress(family.name, len(cases), len(cases))


def run_loss_case(
    candidate: LossCandidate, case: LossCase, observations: list[Observation] | None = None
) -> tuple[CaseResult, list[str]]:
    """One case, run twice under different global seeds; disagreement with itself is a doubt.

    The candidate's values are added to `observations`.
    """
    complaint, on = "", prepared(case)
    result = CaseResult(case.id, "loss", case.tags)
    doubts: list[str] = []
    try:
        reseed(SEEDS[0])
        trace = candidate.trace(case)
        reseed(SEEDS[1])
        again = candidate.trace(case)
    except NotCoveredError as error:
        result.note = str(error)
        return result, doubts
    except CandidateError as error:
        note = f"{error}; the reference computes this case"
        result.comparisons.append(Comparison(error.stage, ERROR, case.id, note=note))
        return result, doubts
    except BrokenGradientError as error:
        trace = again = error.trace
        complaint = str(error)
        result.comparisons.append(Comparison("gradient", DIVERGENT, case.id, note=complaint))
    differing = [name for name in trace if not same_bits(trace[name], again[name])]
    if differing:
        doubts.append(f"two runs of case {case.id} differ at {differing[0]}")
    result.comparisons.extend(compare_loss(case, on.truth, on.reference, trace))
    if observations is not None:
        diverges = result.status in (DIVERGENT, ERROR)
        observations.append(Observation(on, diverges, values_of(on, trace), complaint))
    return result, doubts


def run_prompt_stages(
    candidate: LossCandidate, family: GoldenFamily, findings: Findings, progress: Progress
) -> None:
    """Settings and teacher prompt of our implementation, or a candidate's prompt functions."""
    stages = tuple(stage for stage in candidate.stages if stage in PROMPT_STAGES)
    if isinstance(candidate, Own):
        findings.results.extend(run_config_family(family))
    if stages:
        findings.results.extend(run_reprompt_family(candidate, stages, family, progress))


def apply_declarations(
    candidate: str, declared: Sequence[declarations.Deviation], findings: Findings
) -> None:
    """Turn declared divergences into DECLARED, in place."""
    for result in findings.results:
        for place, comparison in enumerate(result.comparisons):
            changed, entry = declarations.apply_declared(
                comparison, candidate, result.tags, declared
            )
            result.comparisons[place] = changed
            if entry is not None:
                findings.used.add(entry)


def select_stages(stages: Sequence[str], findings: Findings) -> None:
    """Keep the comparisons of the asked stages only, in place."""
    if stages:
        for result in findings.results:
            result.comparisons = [c for c in result.comparisons if c.stage in stages]


def required_stages(request: Request, candidate: LossCandidate, results: Iterable[CaseResult]):
    """Stages that must be covered: those the candidate exposes in the families that ran."""
    families = {result.family for result in results}
    exposed = [s for s in candidate.stages if STAGES[s].family in families | {"config"}]
    if request.stages:
        return [stage for stage in exposed if stage in request.stages]
    return exposed


def document(
    request: Request,
    candidate: LossCandidate,
    findings: Findings,
    declared: Sequence[declarations.Deviation],
) -> dict[str, Any]:
    """The RUN document of a finished audit."""
    rows = stage_rows(findings.results)
    covered = [row["name"] for row in rows if row["status"] != NOT_COVERED]
    required = required_stages(request, candidate, findings.results)
    missing = [stage for stage in required if stage not in covered]
    doubts = list(findings.doubts) + [f"stage {stage} was not covered" for stage in missing]
    if not covered:
        doubts.append("nothing was compared")
    tags = {tag for result in findings.results for tag in result.tags if result.comparisons}
    gone = declarations.vanished(request.candidate, declared, findings.used, tags)
    if request.stages:
        gone = [entry for entry in gone if set(entry.stages) & set(request.stages)]
    statuses = [row["status"] for row in rows] + [DIVERGENT] * bool(gone)
    verdict = run_verdict(statuses, doubts=doubts)
    observed = first_in_order({r["name"] for r in rows if r["status"] in (DIVERGENT, ERROR)})
    found = departure(candidate, findings, verdict, observed)
    reasons = doubts + [f"declared deviation {entry.id} no longer shows" for entry in gone]
    return {
        "candidate": request.candidate,
        "kind": candidate.kind,
        "verdict": verdict,
        "exit_code": EXIT_CODES[verdict],
        "first_stage": found.stage,
        "first_stage_inferred": found.inferred,
        "first_observed": observed,
        "message": reasons[0] if verdict == "INCONCLUSIVE" else error_message(findings),
        "reasons": reasons,
        "explained_by": found.explained_by,
        "coverage": {"covered": covered, "not_covered": [n for n in NAMES if n not in covered]},
        "stages": rows,
        "cases": [result.row() for result in findings.results],
        "totals": totals(findings.results),
        "sensitivity": {
            "smallest_detectable": {
                row["name"]: row["smallest_detectable"]
                for row in rows
                if row["smallest_detectable"] is not None
            }
        },
        "ladder": found.rungs,
        "declared": declared_rows(request.candidate, declared, findings),
        "notes": list(candidate.notes),
        "location": vars(candidate.location) if candidate.location else None,
        "repro": request.repro,
    }


def error_message(findings: Findings) -> str:
    """The first failure of the candidate, with its case and stage."""
    for result in findings.results:
        for comparison in result.comparisons:
            if comparison.status == ERROR:
                return f"stage {comparison.stage}, case {result.id}: {comparison.note}"
    return ""


def departure(
    candidate: LossCandidate, findings: Findings, verdict: str, observed: str | None
) -> Departure:
    """Where a divergent candidate first departs, and the known faults that explain it."""
    if verdict != DIVERGENT or not any(o.diverges for o in findings.observations):
        return Departure(observed)
    shows_loss_only = isinstance(candidate, LossFunction)
    judge_case = partial(judged, candidate) if shows_loss_only else None
    return locate(candidate.kind, findings.observations, observed, judge_case)


def judged(candidate: LossCandidate, case: LossCase) -> CaseResult:
    """The comparisons of one further case."""
    return run_loss_case(candidate, case)[0]


def declared_rows(
    candidate: str, declared: Sequence[declarations.Deviation], findings: Findings
) -> list[dict[str, Any]]:
    """The declared deviations of this candidate, and whether each was seen."""
    return [
        {
            "id": entry.id,
            "stages": list(entry.stages),
            "reason": entry.reason,
            "seen": entry.id in findings.used,
        }
        for entry in declared
        if entry.concerns(candidate)
    ]


def totals(results: Sequence[CaseResult]) -> dict[str, Any]:
    """Counts of cases by status and of comparisons; they must add up.

    Raises:
        AssertionError: they do not.
    """
    statuses = [result.status for result in results]
    counts = {status: statuses.count(status) for status in dict.fromkeys(statuses)}
    comparisons = [c for result in results for c in result.comparisons]
    if sum(counts.values()) != len(results):
        raise AssertionError(f"{counts} do not add up to {len(results)} cases")
    return {
        "cases": len(results),
        "by_status": dict(sorted(counts.items())),
        "comparisons": len(comparisons),
        "bit_equal": sum(c.status == "MATCH" for c in comparisons),
        "elements": sum(c.compared for c in comparisons),
    }


def failed(request: Request, message: str) -> dict[str, Any]:
    """The RUN document of an audit that could not start."""
    return {
        "candidate": request.candidate,
        "kind": "",
        "verdict": ERROR,
        "exit_code": EXIT_CODES[ERROR],
        "first_stage": None,
        "first_stage_inferred": False,
        "first_observed": None,
        "message": message,
        "reasons": [message],
        "explained_by": [],
        "coverage": {"covered": [], "not_covered": list(NAMES)},
        "stages": stage_rows([]),
        "cases": [],
        "totals": totals([]),
        "sensitivity": {"smallest_detectable": {}},
        "ladder": [],
        "declared": [],
        "notes": [],
        "location": None,
        "repro": request.repro,
    }
