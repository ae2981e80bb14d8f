"""The report as JUnit XML: a test case for the verdict, for each stage and for each case."""

import re
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from sdpo.parity.cases.stages import STAGES
from sdpo.parity.render.stage_view import share, worst
from sdpo.parity.render.text import RUN, explanations, first_line, number
from sdpo.parity.report.counts import compared
from sdpo.parity.report.judgement import improvement_lines, judgement

FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
MOST = 2000


def junit_report(run: RUN) -> str:
    """Render a RUN document."""
    root = Element("testsuites", name="sdpo audit")
    stages = suite(root, run, "stages")
    verdict = testcase(stages, f"{run['candidate']}.verdict", "verdict")
    outcome(verdict, run["verdict"], "; ".join(run["reasons"]) or first_line(run), first_line(run))
    for row in run["stages"]:
        stage_case(stages, run, row)
    cases = suite(root, run, "cases")
    for case in run["cases"]:
        name = f"{run['candidate']}.{case['family']}"
        element = testcase(cases, name, case["id"])
        outcome(element, case["status"], case["note"], f"first stage: {case['first_stage']}")
    for element in (stages, cases):
        count(element)
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'


def suite(root: Element, run: RUN, what: str) -> Element:
    """A test suite with the properties of the run."""
    element = SubElement(root, "testsuite", name=allowed(f"sdpo audit {run['candidate']}: {what}"))
    element.set("time", f"{run['seconds']:.3f}" if what == "stages" else "0")
    if run["created"]:
        element.set("timestamp", run["created"].removesuffix("+00:00"))
    properties = SubElement(element, "properties")
    found = {name: str(run[name] or "") for name in ("verdict", "first_stage", "kind", "repro")}
    found["explained_by"] = explanations(run)
    found["judgement"] = "; ".join([*judgement(run), *improvement_lines(run)])
    for name, value in found.items():
        SubElement(properties, "property", name=name, value=allowed(value))
    return element


def testcase(parent: Element, classname: str, name: str) -> Element:
    """A test case without outcome: passed."""
    return SubElement(
        parent, "testcase", classname=allowed(classname), name=allowed(name), time="0"
    )


def stage_case(parent: Element, run: RUN, row: dict[str, Any]) -> None:
    """The test case of a stage, with its figures as properties."""
    element = testcase(parent, f"{run['candidate']}.stages", row["name"])
    properties = SubElement(element, "properties")
    figures = {
        "status": row["status"],
        "compared": compared(row),
        "bit_equal": row["bit_equal"],
        "max_abs": number(row["max_abs"]),
        "max_ulp": number(row["max_ulp"]),
        "budget_used": share(row),
        "reference": STAGES[row["name"]].source,
    }
    for name, value in figures.items():
        SubElement(properties, "property", name=name, value=allowed(str(value)))
    place = worst(row)
    where = f"case {place['case']} {place['place']}" if place else ""
    detail = f"{where}: {place['actual']}, expected {place['expected']}" if place else ""
    outcome(element, row["status"], row["note"], detail)


def outcome(element: Element, status: str, message: str, detail: str) -> None:
    """Mark a test case as its status says; MATCH, PASS and DECLARED are passes."""
    tag = {"DIVERGENT": "failure", "INCONCLUSIVE": "failure", "ERROR": "error"}.get(status)
    if status == "NOT_COVERED":
        SubElement(element, "skipped", message=allowed(message or "not covered"))
    elif tag is not None:
        found = SubElement(element, tag, type=status, message=allowed(message or status))
        found.text = allowed(detail)
    elif status == "DECLARED":
        SubElement(element, "system-out").text = allowed(f"DECLARED {message}")


def count(element: Element) -> None:
    """Write the counts of a suite's outcomes."""
    element.set("tests", str(len(element.findall("testcase"))))
    for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        element.set(name, str(len(element.findall(f"testcase/{tag}"))))


def allowed(text: str) -> str:
    """A text with the characters that XML allows, cut to a length that readers show."""
    return FORBIDDEN.sub("\ufffd", text)[:MOST]
