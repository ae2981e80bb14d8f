"""An old report judged by another policy, from the numbers it holds: nothing is run again."""

import math
from dataclasses import replace

import msgspec
from msgspec import structs

from sdpo.parity.compare.comparison import Comparison
from sdpo.parity.compare.statuses import Status, Verdict
from sdpo.parity.compare.verdict import CaseResult
from sdpo.parity.explain.first_departure import Departure
from sdpo.parity.report.coverable_stages import beyond_families
from sdpo.parity.report.document import Evidence, Policy, assemble
from sdpo.parity.report.report_rows import CaseRow
from sdpo.parity.report.run_report import ReportError, RunReport


def policy_of(report: RunReport) -> Policy:
    """The policy that a report was judged by; deviations as they were declared then."""
    return Policy(tuple(row.entry for row in report.declared), report.policy)


def evidence_of(report: RunReport) -> Evidence:
    """What the audit of a report had found."""
    beyond = report.beyond_goldens
    if beyond is msgspec.UNSET:  # an older report
        beyond = beyond_families(report.claims, report.cases)
    return Evidence(
        report.candidate,
        report.kind,
        tuple(report.claims),
        [_case_result(case) for case in report.cases],
        report.doubts,
        report.notes,
        report.location,
        report.stage_locations,
        report.repro,
        report.trainer,
        report.invariants,
        report.sensitivity.faults,
        report.precision,
        report.departs_only,
        tuple(report.derives_from),
        tuple(beyond),
        report.lacks,
        report.diagnosis,
    )


def _case_result(case: CaseRow) -> CaseResult:
    """A case with its comparisons as they were measured."""
    comparisons = [
        # numbers that JSON lacks are texts in the report
        msgspec.convert({**msgspec.to_builtins(row), "case": case.id}, Comparison, strict=False)
        for row in case.comparisons
    ]
    # In a report the note of a case that did not pass comes from a comparison.
    note = case.note if not comparisons or case.status == Status.PASS else ""
    return CaseResult(case.id, case.family, tuple(case.tags), comparisons, note)


def regate(report: RunReport, policy: Policy) -> RunReport:
    """Judge the evidence of a report by a policy.

    With the policy of the report, the same report results. An audit that could not be carried out
    stays as it is.
    """
    if not report.cases:
        return report

    def located(verdict: str, observed: str | None) -> Departure:
        """What the audit found then; it did not look for a departure where it saw none."""
        if observed != report.first_observed or verdict != Verdict.DIVERGENT:
            return Departure(observed)
        return Departure(
            report.first_observed,
            report.first_stage if report.first_stage_inferred else None,
            explanations=report.explanations,
            rungs=msgspec.to_builtins(report.ladder),
            search=report.explanation_search,
        )

    return structs.replace(
        assemble(evidence_of(report), policy, located),
        bundles=report.bundles,
        environment=report.environment,
        created=report.created,
        seconds=report.seconds,
    )


def tightened(policy: Policy, share: float | None) -> Policy:
    """The policy with a smaller share of the budgets.

    Raises:
        ReportError: the share is none, or looser than the policy's own.
    """
    if share is None:
        return policy
    largest = policy.limits.budget
    if not math.isfinite(share) or not 0 < share <= largest:
        raise ReportError(
            f"--budget {share:g}: must be above 0 and at most {largest:g}, the share this "
            "report was judged by; a budget is never loosened"
        )
    return replace(policy, limits=structs.replace(policy.limits, budget=share))
