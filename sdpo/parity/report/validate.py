"""A RUN document must agree with itself: whoever writes or reads one checks that it adds up."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from sdpo.parity.cases.stages import NAMES
from sdpo.parity.compare.statuses import EXIT_CODES
from sdpo.parity.relations.catalogue import RELATION_NAMES, gravest
from sdpo.parity.report.counts import compared_in, without_element

AGREEING = {"MATCH", "PASS", "NOT_COVERED"}


class InconsistentReportError(Exception):
    """Numbers of a report contradict each other; the message says which."""


def check(run: Mapping[str, Any]) -> None:
    """Refuse a RUN document whose parts contradict each other.

    Raises:
        InconsistentReportError: totals do not add up, or the verdict does not follow from the
            stages.
    """
    for what, left, right in equalities(run):
        if left != right:
            raise InconsistentReportError(f"report of {run['candidate']}: {what}: {left} ≠ {right}")
    check_relations(run)
    check_first(run)
    statuses = {row["status"] for row in run["stages"]}
    verdict, compared = run["verdict"], compared_in(run)
    allowed = AGREEING | {"DECLARED"} if verdict == "DECLARED" else AGREEING
    if verdict in ("PASS", "DECLARED") and (statuses - allowed or run["doubts"] or not compared):
        raise InconsistentReportError(
            f"report of {run['candidate']}: {verdict} with stages {sorted(statuses)}, "
            f"{len(run['doubts'])} doubts and {compared} comparisons"
        )


def check_first(run: Mapping[str, Any]) -> None:
    """Refuse a RUN document whose first stage lies behind what was observed, or was made up.

    Raises:
        InconsistentReportError: so it is.
    """
    first, observed, inferred = (
        run[name] for name in ("first_stage", "first_observed", "first_stage_inferred")
    )
    behind = inferred and NAMES.index(first) > NAMES.index(observed)
    if behind or (not inferred and first != observed):
        raise InconsistentReportError(
            f"report of {run['candidate']}: first stage {first}, inferred: {inferred}, with "
            f"{observed} observed"
        )


def check_relations(run: Mapping[str, Any]) -> None:
    """Refuse a RUN document that leaves a metamorphic relation out, or judges it by other cases.

    Raises:
        InconsistentReportError: a relation is missing, or its status is not that of its cases.
    """
    names = [row["name"] for row in run["invariants"]]
    if run["cases"] and names != list(RELATION_NAMES):
        raise InconsistentReportError(
            f"report of {run['candidate']}: invariants {names} ≠ {list(RELATION_NAMES)}"
        )
    for row in run["invariants"]:
        if row["status"] != gravest(row["cases"]):
            raise InconsistentReportError(
                f"report of {run['candidate']}: invariant {row['name']} is {row['status']} with "
                f"cases {row['cases']}"
            )


def equalities(run: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """What must be equal in a RUN document: a name and both sides."""
    totals, rows, judged = run["totals"], run["stages"], run["policy"]["stages"]
    listed = [
        (comparison["stage"], comparison)
        for case in run["cases"]
        for comparison in case["comparisons"]
        if not judged or comparison["stage"] in judged
    ]
    names = [row["name"] for row in rows]
    covered = [row["name"] for row in rows if row["status"] != "NOT_COVERED"]
    statuses = Counter(case["status"] for case in run["cases"])
    yield "stages", names, list(NAMES)
    yield "cases", totals["cases"], len(run["cases"])
    yield "cases by status", totals["by_status"], dict(sorted(statuses.items()))
    yield "comparisons of stages", totals["comparisons"], sum(r["comparisons"] for r in rows)
    yield "comparisons of cases", totals["comparisons"], len(listed)
    if "empty" in totals:
        yield "comparisons without element", totals["empty"], without_element(run)
    yield "bit-equal values", totals["bit_equal"], sum(r["bit_equal"] for r in rows)
    yield "elements", totals["elements"], sum(c.get("compared", 0) for _, c in listed)
    yield "covered stages", run["coverage"]["covered"], covered
    yield (
        "stages not covered",
        run["coverage"]["not_covered"],
        [n for n in names if n not in covered],
    )
    yield "explanations", run["explained_by"], [row["fault"] for row in run["explanations"]]
    for row in run["explanations"]:
        yield f"cases of {row['fault']}", row["explains"], len(row["cases"])
    if faults := run["sensitivity"].get("faults"):
        yield "known faults", faults["tested"], faults["killed"] + len(faults["survivors"])
    yield "exit code", run["exit_code"], EXIT_CODES[run["verdict"]]
    of_stage = Counter(stage for stage, _ in listed)
    for row in rows:
        yield f"comparisons of {row['name']}", row["comparisons"], of_stage[row["name"]]
