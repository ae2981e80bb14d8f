"""The report as JUnit XML: a test case for the verdict, for each stage and for each case."""

import re
from collections.abc import Mapping

from junitparser import (
    Error,
    Failure,
    JUnitXml,
    Properties,
    Property,
    Skipped,
    TestCase,
    TestSuite,
)

from sdpo.parity.cases.stages import STAGES
from sdpo.parity.compare.statuses import FAILING, Status, Verdict
from sdpo.parity.render.stage_view import budget_share, worst_place
from sdpo.parity.render.text import first_line
from sdpo.parity.report.judgement import explanations, improvement_lines, judgement, number
from sdpo.parity.report.report_rows import StageRow
from sdpo.parity.report.run_report import RunReport

_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LONGEST = 2000
"""Characters of a text that readers of JUnit show."""


def junit_report(run: RunReport) -> str:
    """Render a run."""
    first = first_line(run)
    verdict = _test_case(f"{run.candidate}.verdict", "verdict")
    _set_outcome(verdict, run.verdict, "; ".join(run.reasons) or first, first)
    cases = []
    for row in run.cases:
        case = _test_case(f"{run.candidate}.{row.family}", row.id)
        _set_outcome(case, row.status, row.note, f"first stage: {row.first_stage}")
        cases.append(case)
    stages = _suite(run, "stages", [verdict, *(_stage_case(run, row) for row in run.stages)])
    stages.time = round(run.seconds, 3)
    document = JUnitXml("sdpo audit")
    document.append(stages)
    document.append(_suite(run, "cases", cases))
    return f'<?xml version="1.0" encoding="utf-8"?>\n{document.tostring().decode()}\n'


def _suite(run: RunReport, what: str, cases: list[TestCase]) -> TestSuite:
    """A test suite with the properties of the run."""
    suite = TestSuite(_allowed(f"sdpo audit {run.candidate}: {what}"))
    if run.created:
        suite.timestamp = run.created.removesuffix("+00:00")
    suite.append(
        _properties(
            {
                "verdict": run.verdict,
                "first_stage": run.first_stage or "",
                "kind": run.kind,
                "repro": run.repro,
                "explained_by": explanations(run),
                "judgement": "; ".join([*judgement(run), *improvement_lines(run)]),
            }
        )
    )
    suite.add_testcases(cases)
    return suite


def _properties(texts: Mapping[str, str]) -> Properties:
    properties = Properties()
    for name, text in texts.items():
        properties.add_property(Property(name, _allowed(text)))
    return properties


def _test_case(classname: str, name: str) -> TestCase:
    """A test case without outcome: passed."""
    return TestCase(_allowed(name), _allowed(classname), 0)


def _stage_case(run: RunReport, row: StageRow) -> TestCase:
    """The test case of a stage, with its figures as properties."""
    case = _test_case(f"{run.candidate}.stages", row.name)
    case.append(
        _properties(
            {
                "status": row.status,
                "compared": str(row.compared),
                "bit_equal": str(row.bit_equal),
                "max_abs": number(row.max_abs),
                "max_ulp": number(row.max_ulp),
                "budget_used": budget_share(row),
                "reference": STAGES[row.name].source,
            }
        )
    )
    detail = ""
    if place := worst_place(row):
        detail = f"case {place.case} {place.place}: {place.actual}, expected {place.expected}"
    _set_outcome(case, row.status, row.note, detail)
    return case


def _set_outcome(case: TestCase, status: Status | Verdict, message: str, detail: str) -> None:
    """Mark a test case as its status says; MATCH, PASS and DECLARED are passes."""
    if status == Status.NOT_COVERED:
        case.result = [Skipped(_allowed(message or "not covered"))]
    elif status == Status.DECLARED:
        case.system_out = _allowed(f"DECLARED {message}")
    elif status in (*FAILING, Verdict.INCONCLUSIVE):
        kind = Error if status == Status.ERROR else Failure
        problem = kind(_allowed(message or status), status)
        problem.text = _allowed(detail)
        case.result = [problem]


def _allowed(text: str) -> str:
    """A text with the characters that XML allows, cut to a length that readers show."""
    return _FORBIDDEN.sub("\ufffd", text)[:_LONGEST]
