"""A report from what was found and what a policy makes of it.

`Evidence` holds the findings of an audit as they were measured; `Policy` says what is acceptable.
`assemble` judges one by the other. `regate` reads the evidence back from a report, so that an old
report can be judged by another policy without running anything.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any

import msgspec

from sdpo.parity.cases.stages import NAMES
from sdpo.parity.compare.comparison import Comparison
from sdpo.parity.compare.first_in_time import deciding, first_observed
from sdpo.parity.compare.statuses import Status, Verdict
from sdpo.parity.compare.verdict import CaseResult, improvement_rows, run_verdict, stage_rows
from sdpo.parity.explain.explanation_rows import Certificate, Diagnosis, OneDtypeOnly
from sdpo.parity.explain.first_departure import Departure
from sdpo.parity.relations.relation_rows import RelationRow
from sdpo.parity.report.declared_deviations import apply_declarations
from sdpo.parity.report.report_context import Deviation, Environment, PolicyRow
from sdpo.parity.report.report_rows import (
    CaseRow,
    ComparisonRow,
    Totals,
)
from sdpo.parity.report.run_report import RunReport
from sdpo.runtime.json_values import json_safe, safe_text

Locate = Callable[[str, str | None], Departure]


@dataclass(frozen=True)
class Policy:
    """What is acceptable.

    Attributes:
        declared: deviations that are declared.
        limits: which stages are judged and required, how many must be covered, and the share of
            its budget that an element may use.
        today: the day on which declared deviations are judged.
    """

    declared: tuple[Deviation, ...] = ()
    limits: PolicyRow = field(default_factory=PolicyRow)
    today: date = field(default_factory=date.today)


@dataclass
class Evidence:
    """What an audit found, before any policy.

    `claims` are the stages that the candidate exposes, `trainer` the effects of a trainer's
    deviations, scenario by scenario, `invariants` a row for each metamorphic relation,
    `certificate` how many known faults its cases would have shown (`fault_coverage.py`),
    `precision` where it computes in less than it is given (`own_precision.py`), `departs_only` the
    one dtype in which it departs (`one_setting_only.py`), `derives_from` the packaged candidates
    whose adapters the candidate's derives from, `beyond_goldens` the claims that this golden data
    cannot show (`coverable_stages.py`), `lacks` what a loss cannot be asked, `diagnosis` what
    failing loss cases have in common. Rows are those of the report, or mappings and dataclasses
    with their fields.
    """

    candidate: str
    kind: str
    claims: tuple[str, ...]
    results: list[CaseResult]
    doubts: Sequence[str] = ()
    notes: Sequence[str] = ()
    location: Any = None
    stage_locations: Any = field(default_factory=dict)
    repro: str = ""
    trainer: Sequence[Any] = ()
    invariants: Sequence[RelationRow] = ()
    certificate: Certificate | None = None
    precision: Sequence[Any] = ()
    departs_only: OneDtypeOnly | None = None
    derives_from: tuple[str, ...] = ()
    beyond_goldens: tuple[str, ...] = ()
    lacks: Sequence[str] = ()
    diagnosis: Diagnosis | None = None


def assemble(evidence: Evidence, policy: Policy, locate: Locate) -> RunReport:
    """Judge the evidence by a policy and put the report together.

    Environment and times are left empty.

    Args:
        evidence: what was found; stays as it is.
        policy: what is acceptable.
        locate: given verdict and first observed stage, says where the candidate departs.
    """
    limits = policy.limits
    declarations = apply_declarations(
        [_by_share(result, limits.budget) for result in evidence.results],
        evidence.candidate,
        policy.declared,
        today=policy.today,
        stages=limits.stages,
        derives_from=evidence.derives_from,
    )
    results = [_of_stages(result, limits.stages) for result in declarations.results]
    rows = stage_rows(results)
    covered = [row.name for row in rows if row.status != Status.NOT_COVERED]
    compared = sum(result.status != Status.NOT_COVERED for result in results)
    doubts = [*evidence.doubts, *_gaps(evidence, limits, covered)]
    doubts += _too_few(compared, min(limits.min_cases, len(results) // 2 + 1))
    statuses = [row.status for row in rows]
    if declarations.complaints:
        statuses.append(Status.DIVERGENT)
    verdict = run_verdict(statuses, doubts=doubts)
    observed = first_observed(results)
    departure = locate(verdict, observed)
    reasons = doubts + declarations.complaints
    detectable = {
        row.name: row.smallest_detectable for row in rows if row.smallest_detectable is not None
    }
    document = {
        "candidate": evidence.candidate,
        "kind": evidence.kind,
        "derives_from": evidence.derives_from,
        "verdict": verdict,
        "exit_code": verdict.exit_code,
        "first_stage": departure.stage,
        "first_stage_inferred": departure.inferred,
        "first_observed": observed,
        "message": reasons[0] if verdict == Verdict.INCONCLUSIVE else _error_message(results),
        "reasons": reasons,
        "explained_by": [explained.fault for explained in departure.explanations],
        "explanations": departure.explanations,
        "explanation_search": departure.search,
        "coverage": {"covered": covered, "not_covered": [n for n in NAMES if n not in covered]},
        "stages": rows,
        "cases": _case_rows(results, evidence.results),
        "totals": _totals(results),
        "sensitivity": {"smallest_detectable": detectable, "faults": evidence.certificate},
        "ladder": departure.rungs,
        "trainer": evidence.trainer,
        "invariants": evidence.invariants,
        "bundles": [],
        "declared": declarations.rows,
        "improvements": improvement_rows(results),
        "precision": evidence.precision,
        "departs_only": evidence.departs_only,
        "policy": limits,
        "claims": evidence.claims,
        "beyond_goldens": evidence.beyond_goldens,
        "lacks": evidence.lacks,
        "diagnosis": evidence.diagnosis,
        "doubts": evidence.doubts,
        "notes": evidence.notes,
        "location": evidence.location,
        "stage_locations": evidence.stage_locations,
        "repro": evidence.repro,
        "environment": Environment(),
        "created": "",
        "seconds": 0.0,
    }
    return msgspec.convert(json_safe(document), RunReport)


def _case_rows(results: Sequence[CaseResult], raw: Sequence[CaseResult]) -> list[CaseRow]:
    """Put down the cases as they were judged, with their comparisons as they were measured.

    The first departure of a failing case `may_follow` from those of others, which then decide.
    """
    decisive = {id(result) for result in deciding(results)}
    return [
        CaseRow(
            **result.row(),
            may_follow=result.first_stage is not None and id(result) not in decisive,
            comparisons=[_measured(comparison) for comparison in measured.comparisons],
        )
        for result, measured in zip(results, raw, strict=True)
    ]


def _measured(comparison: Comparison) -> ComparisonRow:
    """Put down a comparison as it was measured, without its case."""
    fields = {name: value for name, value in vars(comparison).items() if name != "case"}
    return msgspec.convert(json_safe(fields), ComparisonRow)


def _by_share(result: CaseResult, share: float) -> CaseResult:
    """A case judged by a share of its budgets; nothing changes at 1."""
    if share == 1.0:
        return result
    note = f"more than {share:g} of the budget"
    comparisons = [
        replace(c, status=Status.DIVERGENT, note=note, effect="value")
        if c.status == Status.PASS and c.budget_used > share
        else c
        for c in result.comparisons
    ]
    return replace(result, comparisons=comparisons)


def _of_stages(result: CaseResult, stages: Sequence[str]) -> CaseResult:
    """A case with the comparisons of the asked stages only; of all if none is asked for."""
    if not stages:
        return result
    return replace(result, comparisons=[c for c in result.comparisons if c.stage in stages])


def _gaps(evidence: Evidence, limits: PolicyRow, covered: Sequence[str]) -> list[str]:
    """Why too little was covered for a pass."""
    claimed = [stage for stage in evidence.claims if stage not in evidence.beyond_goldens]
    if limits.stages:
        claimed = [stage for stage in claimed if stage in limits.stages]
    required = [name for name in NAMES if name in claimed or name in limits.require]
    gaps = [f"stage {name} was not covered" for name in required if name not in covered]
    if len(covered) < limits.coverage:
        gaps.append(f"{len(covered)} stages are covered, {limits.coverage} are required")
    return gaps if covered else [*gaps, "nothing was compared"]


def _too_few(compared: int, needed: int) -> list[str]:
    """Why too few cases were compared for a pass; nothing where there were enough."""
    if compared >= needed or not compared:
        return []
    return [
        f"{compared} cases were compared, {needed} are needed: take more settings as arguments, "
        "declare what the loss lacks (sdpo.capabilities), or lower --min-cases"
    ]


def _error_message(results: Sequence[CaseResult]) -> str:
    """The first failure of the candidate, with its case and stage."""
    for result in results:
        for comparison in result.comparisons:
            if comparison.status == Status.ERROR:
                return f"stage {comparison.stage}, case {result.id}: {comparison.note}"
    return ""


def _totals(results: Sequence[CaseResult]) -> Totals:
    """Counts of cases by status, and of comparisons."""
    statuses = [result.status for result in results]
    comparisons = [c for result in results for c in result.comparisons]
    return Totals(
        cases=len(results),
        by_status={status: statuses.count(status) for status in sorted(set(statuses))},
        comparisons=len(comparisons),
        empty=sum(c.status == Status.NOT_COVERED for c in comparisons),
        bit_equal=sum(c.status == Status.MATCH for c in comparisons),
        elements=sum(c.compared for c in comparisons),
    )


def failed(candidate: str, repro: str, message: str) -> RunReport:
    """The report of an audit that could not start."""
    evidence, message = Evidence(candidate, "", (), [], repro=repro), safe_text(message)
    report = assemble(evidence, Policy(), lambda verdict, observed: Departure(None))
    return msgspec.structs.replace(
        report,
        verdict=Verdict.ERROR,
        exit_code=Verdict.ERROR.exit_code,
        message=message,
        reasons=[message],
    )
