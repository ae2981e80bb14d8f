"""The RUN document: what was found, and what a policy makes of it.

`Evidence` holds the findings of an audit as they were measured; `Policy` says what is acceptable.
`assemble` judges one by the other. `regate` reads the evidence back from a document, so that an old
report can be judged by another policy without running anything.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any

from sdpo.parity.cases.stages import NAMES
from sdpo.parity.compare.comparison import Comparison
from sdpo.parity.compare.first_in_time import deciding, first_observed
from sdpo.parity.compare.statuses import Status, Verdict
from sdpo.parity.compare.verdict import CaseResult, improvement_rows, run_verdict, stage_rows
from sdpo.parity.explain import explanations
from sdpo.parity.explain.first_departure import Departure
from sdpo.parity.report import declared_deviations as declarations
from sdpo.parity.report.declared_deviations import Deviation

USUAL = vars(Comparison("", Status.NOT_COVERED))

Locate = Callable[[str, str | None], Departure]


@dataclass(frozen=True)
class Policy:
    """What is acceptable.

    Attributes:
        declared: deviations that are declared.
        stages: only these are judged; all if empty.
        require: stages without which no pass is given, beside those the candidate claims.
        coverage: how many stages must be covered at least.
        budget: share of its budget that an element may use, at most 1.
        today: the day on which declared deviations are judged.
    """

    declared: tuple[Deviation, ...] = ()
    stages: tuple[str, ...] = ()
    require: tuple[str, ...] = ()
    coverage: int = 0
    budget: float = 1.0
    today: date = field(default_factory=date.today)

    def row(self) -> dict[str, Any]:
        """The policy in the report; the deviations have a place of their own."""
        return {
            "stages": list(self.stages),
            "require": list(self.require),
            "coverage": self.coverage,
            "budget": self.budget,
        }


@dataclass
class Evidence:
    """What an audit found, before any policy.

    `claims` are the stages that the candidate exposes, `trainer` the effects of a trainer's
    deviations, scenario by scenario, `invariants` a row for each metamorphic relation,
    `certificate` how many known faults its cases would have shown (`fault_coverage.py`),
    `precision` where it computes in less than it is given (`own_precision.py`), `departs_only` the
    one dtype in which it departs (`one_setting_only.py`), `derives_from` the packaged candidates
    whose adapters the candidate's derives from, `beyond_goldens` the claims that this golden data
    cannot show
    (`coverable_stages.py`).
    """

    candidate: str
    kind: str
    claims: tuple[str, ...]
    results: list[CaseResult]
    doubts: list[str] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    location: dict[str, Any] | None = None
    stage_locations: dict[str, dict[str, Any]] = field(default_factory=dict)
    repro: str = ""
    trainer: list[dict[str, Any]] = field(default_factory=list)
    invariants: list[dict[str, Any]] = field(default_factory=list)
    certificate: dict[str, Any] | None = None
    precision: list[dict[str, Any]] = field(default_factory=list)
    departs_only: dict[str, Any] | None = None
    derives_from: tuple[str, ...] = ()
    beyond_goldens: tuple[str, ...] = ()


def assemble(evidence: Evidence, policy: Policy, locate: Locate) -> dict[str, Any]:
    """Judge the evidence by a policy and put the RUN document together.

    Environment and times are left out.

    Args:
        evidence: what was found; stays as it is.
        policy: what is acceptable.
        locate: given verdict and first observed stage, says where the candidate departs.
    """
    judged = declarations.judge(
        [stricter(result, policy.budget) for result in evidence.results],
        evidence.candidate,
        policy.declared,
        today=policy.today,
        stages=policy.stages,
        derives_from=evidence.derives_from,
    )
    results = [selected(result, policy.stages) for result in judged.results]
    rows = stage_rows(results)
    covered = [row["name"] for row in rows if row["status"] != Status.NOT_COVERED]
    doubts = list(evidence.doubts) + gaps(evidence, policy, covered)
    statuses = [row["status"] for row in rows] + [Status.DIVERGENT] * bool(judged.complaints)
    verdict = run_verdict(statuses, doubts=doubts)
    observed = first_observed(results)
    found = locate(verdict, observed)
    reasons = doubts + judged.complaints
    return {
        "candidate": evidence.candidate,
        "kind": evidence.kind,
        "derives_from": list(evidence.derives_from),
        "verdict": verdict,
        "exit_code": verdict.exit_code,
        "first_stage": found.stage,
        "first_stage_inferred": found.inferred,
        "first_observed": observed,
        "message": reasons[0] if verdict == Verdict.INCONCLUSIVE else error_message(results),
        "reasons": reasons,
        "explained_by": [one.fault for one in found.explanations],
        "explanations": explanations.rows(found.explanations),
        "explanation_search": found.search,
        "coverage": {"covered": covered, "not_covered": [n for n in NAMES if n not in covered]},
        "stages": rows,
        "cases": case_rows(results, evidence.results),
        "totals": totals(results),
        "sensitivity": {
            "smallest_detectable": {
                row["name"]: row["smallest_detectable"]
                for row in rows
                if row["smallest_detectable"] is not None
            }
        }
        | ({"faults": evidence.certificate} if evidence.certificate else {}),
        "ladder": found.rungs,
        "trainer": list(evidence.trainer),
        "invariants": list(evidence.invariants),
        "bundles": [],
        "declared": judged.rows,
        "improvements": improvement_rows(results),
        "precision": list(evidence.precision),
        "departs_only": evidence.departs_only,
        "policy": policy.row(),
        "claims": list(evidence.claims),
        "beyond_goldens": list(evidence.beyond_goldens),
        "doubts": list(evidence.doubts),
        "notes": list(evidence.notes),
        "location": evidence.location,
        "stage_locations": evidence.stage_locations,
        "repro": evidence.repro,
    }


def case_rows(results: Sequence[CaseResult], raw: Sequence[CaseResult]) -> list[dict[str, Any]]:
    """The cases as they were judged, with their comparisons as they were measured.

    The first departure of a failing case `may_follow` from those of others, which then decide.
    """
    decisive = {id(result) for result in deciding(results)}
    return [
        result.row()
        | {"may_follow": result.first_stage is not None and id(result) not in decisive}
        | {"comparisons": [compact(c) for c in measured.comparisons]}
        for result, measured in zip(results, raw, strict=True)
    ]


def stricter(result: CaseResult, share: float) -> CaseResult:
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


def selected(result: CaseResult, stages: Sequence[str]) -> CaseResult:
    """A case with the comparisons of the asked stages only; of all if none is asked for."""
    if not stages:
        return result
    return replace(result, comparisons=[c for c in result.comparisons if c.stage in stages])


def gaps(evidence: Evidence, policy: Policy, covered: Sequence[str]) -> list[str]:
    """Why too little was covered for a pass."""
    claimed = [stage for stage in evidence.claims if stage not in evidence.beyond_goldens]
    if policy.stages:
        claimed = [stage for stage in claimed if stage in policy.stages]
    required = [name for name in NAMES if name in claimed or name in policy.require]
    found = [f"stage {name} was not covered" for name in required if name not in covered]
    if len(covered) < policy.coverage:
        found.append(f"{len(covered)} stages are covered, {policy.coverage} are required")
    return found if covered else [*found, "nothing was compared"]


def error_message(results: Sequence[CaseResult]) -> str:
    """The first failure of the candidate, with its case and stage."""
    for result in results:
        for comparison in result.comparisons:
            if comparison.status == Status.ERROR:
                return f"stage {comparison.stage}, case {result.id}: {comparison.note}"
    return ""


def compact(comparison: Comparison) -> dict[str, Any]:
    """A comparison as it was measured; what has its usual value is left out, as is the case."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(comparison).items()
        if name in ("stage", "status") or (name != "case" and value != USUAL[name])
    }


def totals(results: Sequence[CaseResult]) -> dict[str, Any]:
    """Counts of cases by status, and of comparisons."""
    statuses = [result.status for result in results]
    comparisons = [c for result in results for c in result.comparisons]
    return {
        "cases": len(results),
        "by_status": {status: statuses.count(status) for status in sorted(set(statuses))},
        "comparisons": len(comparisons),
        "empty": sum(c.status == Status.NOT_COVERED for c in comparisons),
        "bit_equal": sum(c.status == Status.MATCH for c in comparisons),
        "elements": sum(c.compared for c in comparisons),
    }


def failed(candidate: str, repro: str, message: str) -> dict[str, Any]:
    """The RUN document of an audit that could not start."""
    evidence = Evidence(candidate, "", (), [], repro=repro)
    run = assemble(evidence, Policy(), lambda verdict, observed: Departure(None))
    return run | {
        "verdict": Verdict.ERROR,
        "exit_code": Verdict.ERROR.exit_code,
        "message": message,
        "reasons": [message],
    }
