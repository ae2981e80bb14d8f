"""Small hand-made reports, one for each verdict, for tests of the renderings."""

from typing import Any

import msgspec

from sdpo.parity.cases.stages import NAMES, STAGES
from sdpo.parity.relations.catalogue import RELATION_NAMES
from sdpo.parity.report.run_report import RunReport

ENTRY = """
[[deviation]]
id = "X1"
candidates = ["loss.py:f"]
stages = ["divergence"]
tag = "core"
effect = "value"
reason = "as agreed"
fault = "M01"
measured = 0.1
range = [0.05, 0.5]
expires = 2030-01-01
"""

COMMIT = "0e6d5106abe69f578c63bf38a9394e22905c8773"


def stage(name: str, status: str, by_case: list[list[Any]], **changes: Any) -> dict[str, Any]:
    """A stage row; figures follow from the cases `[id, status, used, max_abs, max_ulp]`."""
    numeric = [[float(x) for x in case[2:]] for case in by_case]
    used, size, ulp = (max(column) for column in zip(*numeric, strict=True))
    row = {
        "name": name,
        "status": status,
        "max_abs": size,
        "max_ulp": ulp,
        "budget_used": used,
        "worst": None,
        "first_in": 0,
        "introduced": None,
        "comparisons": len(by_case),
        "bit_equal": sum(case[1] == "MATCH" for case in by_case),
        "empty": 0,
        "smallest_detectable": 1.5e-14,
        "relative": None,
        "note": "",
        "by_case": by_case,
    }
    return row | changes


def relation(name: str, status: str, of_reference: str = "HOLDS", **worst: Any) -> dict[str, Any]:
    """The row of a metamorphic relation with two cases."""
    cases = {status: 1, "HOLDS": 1} if status in ("VIOLATED", "INHERITED") else {status: 2}
    return {
        "name": name,
        "sentence": f"What {name} says.",
        "pain": "somebody | complained (#1)",
        "status": status,
        "cases": cases,
        "worst": worst or None,
        "of_reference": of_reference,
        "note": "",
    }


def relations(**changed: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each relation; those that are not given hold."""
    small = {"case": "usual", "value": "loss", "used": 0.25, "distance": 1e-9, "budget": 4e-9}
    found = {name: relation(name, "HOLDS", **small) for name in RELATION_NAMES}
    return list((found | {row["name"]: row for row in changed.values()}).values())


def uncovered(name: str) -> dict[str, Any]:
    """The row of a stage that was not compared."""
    row = stage(name, "NOT_COVERED", [["none", "NOT_COVERED", 0, 0, 0]])
    row |= {"comparisons": 0, "by_case": []}
    return row | dict.fromkeys(("max_abs", "max_ulp", "budget_used", "smallest_detectable"))


def run(verdict: str, rows: list[dict[str, Any]], **changes: Any) -> RunReport:
    """A report around some stage rows; what is not compared is filled in."""
    by_name = {row["name"]: row for row in rows}
    cases = [
        entry | {"comparisons": measured(entry["id"], rows)} for entry in changes.get("cases", [])
    ]
    statuses = [case["status"] for case in cases]
    document = {
        "candidate": "loss.py:f",
        "kind": "loss from logits",
        "verdict": verdict,
        "exit_code": 0,
        "first_stage": None,
        "first_stage_inferred": False,
        "first_observed": None,
        "message": "",
        "reasons": [],
        "explained_by": [],
        "explanations": [],
        "coverage": {
            "covered": [name for name in NAMES if name in by_name],
            "not_covered": [name for name in NAMES if name not in by_name],
        },
        "stages": [by_name.get(name) or uncovered(name) for name in NAMES],
        "cases": [],
        "totals": {
            "cases": len(cases),
            "by_status": {status: statuses.count(status) for status in sorted(set(statuses))},
            "comparisons": sum(row["comparisons"] for row in rows),
            "bit_equal": sum(row["bit_equal"] for row in rows),
            "elements": 10 * sum(row["comparisons"] for row in rows),
        },
        "explanation_search": None,
        "policy": {"stages": [], "require": [], "coverage": 0, "budget": 1.0},
        "claims": [name for name in NAMES if name in by_name],
        "doubts": [],
        "sensitivity": {"smallest_detectable": {}},
        "ladder": [],
        "trainer": [],
        "invariants": relations() if cases else [],
        "bundles": [],
        "declared": [],
        "improvements": [],
        "precision": [],
        "departs_only": None,
        "notes": [],
        "location": {"file": "loss.py", "line": 7},
        "stage_locations": {},
        "repro": "sdpo audit loss.py:f",
        "environment": {
            "torch": "2.9.0",
            "determinism": {"seed": 1, "allow_tf32": False},
            "candidate_seeds": [1, 2],
            "goldens": [
                {
                    "family": "loss",
                    "cases": 3,
                    "manifest_sha256": "ab" * 32,
                    "reference_commit": COMMIT,
                }
            ],
        },
        "created": "2026-01-02T03:04:05+00:00",
        "seconds": 1.25,
    }
    return msgspec.convert(document | changes | {"cases": cases}, RunReport)


def changed(report: RunReport, *path: str | int, value: Any) -> RunReport:
    """The report with one value replaced, which its type must allow."""
    document = msgspec.to_builtins(report)
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return msgspec.convert(document, RunReport)


def measured(case: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The comparisons of a case, as the stage rows have them; empty ones are the first case's."""
    found = []
    for row in rows:
        for id_, status, used, size, ulp in row["by_case"]:
            if id_ == case:
                numbers = {"budget_used": used, "max_abs": size, "max_ulp": ulp}
                declared = status == "DECLARED" and row["note"].startswith("declared")
                raw = "DIVERGENT" if declared else status
                found.append({"stage": row["name"], "status": raw, "compared": 10, **numbers})
        if row["by_case"][0][0] == case:
            missing = {"stage": row["name"], "status": "NOT_COVERED", "compared": 10}
            found += [missing] * (row["comparisons"] - len(row["by_case"]))
    return found


def case(name: str, status: str, note: str = "", first: str | None = None) -> dict[str, Any]:
    """A case row."""
    row = {"id": name, "family": "loss", "status": status, "first_stage": first, "note": note}
    return row | {"tags": [], "may_follow": False, "comparisons": []}


def passing() -> RunReport:
    """Every stage compared: one bit-equal case and one within budget."""
    by_case = [["P-1", "MATCH", 0.0, 0.0, 0.0], ["P-2", "PASS", 0.25, 1.5e-8, 2.0]]
    equal = [[name, "MATCH", 0.0, 0.0, 0.0] for name in ("P-1", "P-2")]
    worst = {"case": "P-2", "token": 3, "actual": 0.5, "expected": 0.50000001, "budget": 6e-8}
    rows = [
        stage(name, "PASS", by_case, worst=worst, empty=1, comparisons=3)
        if STAGES[name].kind == "numeric"
        else stage(name, "MATCH", equal, smallest_detectable=None)
        for name in NAMES
    ]
    return run("PASS", rows, cases=[case("P-1", "MATCH"), case("P-2", "PASS")])


def deviation() -> dict[str, Any]:
    """The row of a declared deviation that was seen in one case."""
    return {
        "id": "D01",
        "candidates": ["loss.py:f"],
        "stages": ["aggregate"],
        "effect": "finite_where_reference_is_not",
        "reason": "zero times inf | zero",
        "tag": "*",
        "cases": [],
        "fault": "",
        "link": "",
        "measured": None,
        "range": None,
        "expires": None,
        "seen": True,
        "seen_cases": 1,
        "size": 1.0,
    }


def improvement() -> dict[str, Any]:
    """The row of a documented improvement that one case falls under."""
    return {
        "id": "D02",
        "effect": "zero_weight",
        "stages": ["aggregate", "gradient"],
        "reason": "values of padding | reach nothing",
        "link": "where it is documented",
        "cases": ["P-3"],
    }


def declared() -> RunReport:
    """One declared deviation, one case under a built-in exception."""
    worst = {"case": "P-2", "actual": 0.1, "expected": "nan", "budget": 1e-7}
    cases = [["P-1", "MATCH", 0.0, 0.0, 0.0], ["P-2", "DECLARED", 0.0, 0.0, 0.0]]
    cases.append(["P-3", "DECLARED", 0.5, 1e-7, 1.0])
    note = "declared as D01: zero times infinity is zero | here"
    return run(
        "DECLARED",
        [stage("aggregate", "DECLARED", cases, worst=worst, note=note)],
        cases=[
            case("P-1", "MATCH"),
            case("P-2", "DECLARED", note),
            case("P-3", "DECLARED", "finite where the reference is not"),
        ],
        declared=[deviation()],
        improvements=[improvement()],
    )


def divergent() -> RunReport:
    """A wrong loss, located by intervention; more failing cases than a table shows."""
    cases = [[f"P-{n}", "DIVERGENT", 10.0**n, 0.1 * n, 1e5 * n] for n in range(1, 26)]
    worst = {"case": "P-25", "actual": 0.3963, "expected": 0.3185, "budget": 1.9e-14}
    note = "1 of 1 over budget"
    return run(
        "DIVERGENT",
        [stage("aggregate", "DIVERGENT", cases, worst=worst, note=note, first_in=25)],
        cases=[case(c[0], "DIVERGENT", note, "aggregate") for c in cases],
        exit_code=1,
        first_stage="tail",
        first_stage_inferred=True,
        first_observed="aggregate",
        explained_by=[row["fault"] for row in explained()],
        explanations=explained(),
        ladder=[
            {"stage": "divergence", "feature": "alpha 0", "result": "holds", "factor": 1.0},
            {"stage": "tail", "feature": "top-k tail", "result": "departs", "factor": 1.5},
            {
                "stage": "importance",
                "feature": "ratio below cap",
                "result": "not covered",
                "factor": None,
            },
        ],
        bundles=[
            {
                "case": "P-1",
                "file": "bundles/P-1.zip",
                "before": [4, 6, 64],
                "after": [1, 1, 9],
                "tries": 31,
            }
        ],
        explanation_search={"faults": 99, "pairs": 0, "pairs_tried": 0},
        invariants=broken_relations(),
    )


def explained() -> list[dict[str, Any]]:
    """A fault that explains most of the 25 cases, and one that explains one."""
    most, one = [f"P-{n}" for n in range(1, 25)], ["P-25"]
    return [
        {"fault": "M07 mean over masked rows", "explains": 24, "of": 25, "also": False}
        | {"cases": most},
        {"fault": "M15 | mask", "explains": 1, "of": 25, "also": True, "cases": one},
    ]


def broken_relations() -> list[dict[str, Any]]:
    """Relations of every status."""
    far = {"value": "gradient", "used": "inf", "distance": "inf", "budget": 4e-9}
    near = {"value": "loss", "used": 1.5e4, "distance": 6e-5, "budget": 4e-9}
    fails = relation("row order", "ERROR") | {"note": "raised ValueError: `x` | <b>1</b>"}
    untested = relation("logit shift", "NOT_COVERED") | {"note": "is given log-probs"}
    return relations(
        a=relation("micro-batch split", "INHERITED", "VIOLATED", case="sums", **near),
        b=relation("masked row", "VIOLATED", case="a | case", **far),
        c=fails,
        d=untested,
    )


def failed() -> RunReport:
    """An audit that could not start."""
    message = "no file loss.py; give FILE.py:attr or pkg.mod:attr"
    empty = {"environment": {}, "created": "", "location": None, "exit_code": 2}
    return run("ERROR", [], message=message, reasons=[message], **empty)


def raising() -> RunReport:
    """A candidate that raises in one case."""
    note = "raised ValueError: `alpha` | <b>1</b>"
    cases = [["P-1", "MATCH", 0.0, 0.0, 0.0], ["P-2", "ERROR", 0.0, 0.0, 0.0]]
    return run(
        "ERROR",
        [stage("aggregate", "ERROR", cases, note=note)],
        cases=[case("P-1", "MATCH"), case("P-2", "ERROR", note, "aggregate")],
        message=f"stage aggregate, case P-2: {note}",
        first_stage="aggregate",
        first_observed="aggregate",
        exit_code=2,
    )


def inconclusive() -> RunReport:
    """A candidate that disagrees with itself and does not take what two cases need."""
    reasons = ["two runs of case P-1 differ at aggregate", "stage gradient was not covered"]
    need = "takes no old_log_probs, the case needs it"
    return run(
        "INCONCLUSIVE",
        [stage("aggregate", "PASS", [["P-1", "PASS", 0.5, 1e-7, 1.0]])],
        cases=[
            case("P-1", "PASS"),
            case("P-2", "NOT_COVERED", need),
            case("P-3", "NOT_COVERED", need),
        ],
        message=reasons[0],
        reasons=reasons,
        notes=["the second value it returns is ignored"],
        doubts=reasons,
        exit_code=3,
    )


ALL = {
    "pass": passing,
    "declared": declared,
    "divergent": divergent,
    "error": failed,
    "raising": raising,
    "inconclusive": inconclusive,
}
