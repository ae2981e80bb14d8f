"""An old report judged by another policy, from the numbers it holds: nothing is run again."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdpo.parity.compare.comparison import Comparison
from sdpo.parity.compare.statuses import Status
from sdpo.parity.compare.verdict import CaseResult
from sdpo.parity.explain.explanations import from_rows
from sdpo.parity.explain.first_departure import Departure
from sdpo.parity.report.coverable_stages import beyond_families
from sdpo.parity.report.declared_deviations import Deviation
from sdpo.parity.report.document import Evidence, Policy, assemble
from sdpo.parity.report.validate import InconsistentReportError, check

NUMBERS = ("max_abs", "max_ulp", "budget_used", "smallest_detectable", "relative")
LISTS = ("place", "may_follow")
KEPT = ("bundles", "environment", "created", "seconds")
LARGEST = 256 * 2**20


class ReportError(Exception):
    """A file that is no report; the message says why."""


def read_runs(path: Path) -> list[dict[str, Any]]:
    """The RUN documents of a report.

    Raises:
        ReportError: unreadable, no JSON, of another version, or contradicting itself.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise ReportError(f"{path} is larger than {LARGEST >> 20} MiB: no report")
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ReportError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ReportError(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict) or document.get("schema_version") != 1:
        raise ReportError(
            f"{path} is no report of schema_version 1: give a report.json of an audit"
        )
    try:
        for run in document["runs"]:
            check(run)
        return document["runs"]
    except InconsistentReportError as error:
        raise ReportError(f"{path}: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ReportError(f"{path} lacks a part of a report: {error!r}") from error


def policy_of(run: Mapping[str, Any]) -> Policy:
    """The policy that a report was judged by; deviations as they were declared then."""
    row = run["policy"]
    return Policy(
        tuple(Deviation.from_row(entry) for entry in run["declared"]),
        tuple(row["stages"]),
        tuple(row["require"]),
        row["coverage"],
        row["budget"],
    )


def evidence_of(run: Mapping[str, Any]) -> Evidence:
    """What the audit of a report had found."""
    return Evidence(
        run["candidate"],
        run["kind"],
        tuple(run["claims"]),
        [case_result(case) for case in run["cases"]],
        list(run["doubts"]),
        tuple(run["notes"]),
        run["location"],
        run["stage_locations"],
        run["repro"],
        list(run["trainer"]),
        list(run["invariants"]),
        run["sensitivity"].get("faults"),
        precision=list(run.get("precision", [])),  # reports of before have none of these
        departs_only=run.get("departs_only"),
        derives_from=tuple(run.get("derives_from", ())),
        beyond_goldens=tuple(
            run.get("beyond_goldens", beyond_families(run["claims"], run["cases"]))
        ),
    )


def case_result(case: Mapping[str, Any]) -> CaseResult:
    """A case with its comparisons as they were measured."""
    comparisons = [comparison_of(case["id"], row) for row in case["comparisons"]]
    # In a report the note of a case that did not pass comes from a comparison.
    note = case["note"] if not comparisons or case["status"] == Status.PASS else ""
    return CaseResult(case["id"], case["family"], tuple(case["tags"]), comparisons, note)


def comparison_of(case: str, row: Mapping[str, Any]) -> Comparison:
    """One comparison; numbers that JSON lacks are texts in the report."""
    numbers = {k: float(row[k]) if row[k] is not None else None for k in NUMBERS if k in row}
    lists = {k: tuple(row[k]) for k in LISTS if k in row}
    return Comparison(**{**row, **numbers, **lists, "case": case})


def regate(run: Mapping[str, Any], policy: Policy) -> dict[str, Any]:
    """Judge the evidence of a RUN document by a policy.

    With the policy of the document, the same document results. An audit that could not be carried
    out stays as it is.
    """
    if not run["cases"]:
        return dict(run)

    def located(verdict: str, observed: str | None) -> Departure:
        """What the audit found then; it did not look for a departure where it saw none."""
        then = Departure(
            run["first_observed"],
            run["first_stage"] if run["first_stage_inferred"] else None,
            explanations=from_rows(run["explanations"]),
            rungs=run["ladder"],
            search=run["explanation_search"],
        )
        same = observed == run["first_observed"] and verdict == Status.DIVERGENT
        return then if same else Departure(observed)

    judged = assemble(evidence_of(run), policy, located)
    return judged | {name: run[name] for name in KEPT}


def tightened(policy: Policy, share: float | None) -> Policy:
    """The policy with a smaller share of the budgets.

    Raises:
        ReportError: the share is none, or looser than the policy's own.
    """
    if share is None:
        return policy
    if not math.isfinite(share) or not 0 < share <= policy.budget:
        raise ReportError(
            f"--budget {share:g}: must be above 0 and at most {policy.budget:g}, the share this "
            "report was judged by; a budget is never loosened"
        )
    return replace(policy, budget=share)
