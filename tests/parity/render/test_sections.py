"""Markdown, HTML and the files of an audit: golden renderings, escaping, statuses as text."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import structs

from sdpo.parity.audit.report_files import write_reports
from sdpo.parity.cases.stages import NAMES
from sdpo.parity.compare.statuses import Status
from sdpo.parity.render.html import html_report, marked
from sdpo.parity.render.markdown import cell, code, fence, markdown_report, text
from sdpo.parity.render.plots import Plot
from sdpo.parity.render.sections import sections
from sdpo.parity.render.stage_view import budget_share, digits, stage_view, worst_place
from sdpo.parity.render.text import text_report
from sdpo.parity.report.report_rows import StageRow
from sdpo.parity.report.run_report import RunReport, read_report
from tests.helpers import run_documents
from tests.helpers.spread import slow_are

PLOT = Plot("overview.png", "a | title", "a *caption*", b"\x89PNG")
VOID = {"meta", "br", "img", "wbr"}


class Balance(HTMLParser):
    """Collects texts and scripts, and fails where tags do not close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def stage_row(name: str, status: str, by_case: list[list[Any]]) -> StageRow:
    return msgspec.convert(run_documents.stage(name, status, by_case), StageRow)


def parsed(html: str) -> Balance:
    parser = Balance()
    parser.feed(html)
    parser.close()
    assert not parser.open
    return parser


@pytest.mark.parametrize("name", run_documents.ALL)
def test_markdown_of_each_verdict(name, file_regression):
    report = markdown_report(run_documents.ALL[name](), [PLOT] if name == "pass" else [])
    file_regression.check(report, extension=".md")


@pytest.mark.parametrize("name", ["divergent", "error"])
def test_html_of_a_verdict(name, file_regression):
    report = html_report(run_documents.ALL[name](), [PLOT])
    body = re.sub(r"<style>.*</style>", "<style/>", report, flags=re.DOTALL)
    file_regression.check(body, extension=".html")


@pytest.mark.parametrize("name", run_documents.ALL)
def test_sections_say_what_the_document_says(name, data_regression):
    found = sections(run_documents.ALL[name]())
    keys = ("headline", "summary", "covers", "legend", "totals", "reasons", "declared", "goldens")
    data_regression.check({key: msgspec.to_builtins(getattr(found, key)) for key in keys})


@pytest.mark.parametrize("name", run_documents.ALL)
def test_html_is_well_formed_and_loads_nothing(name):
    page = parsed(html_report(run_documents.ALL[name](), [PLOT, PLOT]))
    assert not {"script", "link", "iframe"} & set(page.seen)
    for link in page.links:
        assert link.startswith(("data:image/png;base64,", "https://github.com/lasgroup/SDPO/blob/"))
    assert "style" in page.seen


@pytest.mark.parametrize("name", run_documents.ALL)
def test_verdict_and_every_status_appear_as_text(name):
    run = run_documents.ALL[name]()
    markdown, page = markdown_report(run), parsed(html_report(run)).text
    statuses = {row.status for row in run.stages} if run.coverage.covered else set()
    for status in statuses | {run.verdict}:
        assert status in markdown
        assert status in page
    if statuses:
        assert all(f"`{stage}`" in markdown and stage in page for stage in NAMES)


def test_texts_of_the_candidate_are_escaped_in_html():
    attack = '<script>alert(1)</script>"><img src=x onerror=alert(2)>'
    document = msgspec.to_builtins(run_documents.raising()) | {
        "candidate": attack,
        "message": attack,
        "notes": [attack],
        "reasons": [attack, "other " + attack],
        "explained_by": [attack],
        "explanations": [
            explanation | {"fault": attack} for explanation in run_documents.explained()
        ],
        "repro": f"sdpo audit '{attack}'",
        "location": {"file": attack, "line": 1},
        "ladder": [{"stage": "tail", "feature": attack, "result": "departs", "factor": None}],
        "environment": {"torch": attack, "processor": attack, "determinism": {attack: attack}},
    }
    for entry in document["cases"]:
        entry["note"] = entry["id"] = attack
    row = document["stages"][NAMES.index("aggregate")]
    row["worst"] = {"case": attack, "value": attack, "actual": attack, "expected": attack}
    page = parsed(html_report(msgspec.convert(document, RunReport)))
    assert not {"script", "img"} & set(page.seen)
    assert page.text.count("<script>alert(1)</script>") > 10


def test_a_sentence_of_ours_is_escaped_before_names_become_code():
    assert marked("at `<i>` & `b`") == "at <code>&lt;i&gt;</code> &amp; <code>b</code>"


def test_texts_of_the_candidate_cannot_leave_their_place_in_markdown():
    assert code("a ` b `` c") == "```a ` b `` c```"
    assert code("`x`") == "`` `x` ``"
    assert code("") == ""
    assert cell("a | b\nc") == r"`a \| b c`"
    assert fence("```\nx").startswith("````text\n```\nx\n````")
    assert text("a_b *c* <d> [e](f) & |") == r"a\_b \*c\* &lt;d&gt; \[e\](f) &amp; \|"


def test_tables_of_the_markdown_keep_their_columns():
    widths: set[tuple[str, int]] = set()
    for build in run_documents.ALL.values():
        header = ""
        for line in markdown_report(build()).splitlines():
            if not line.startswith("|"):
                header = ""
                continue
            header = header or line
            widths.add((header, len(re.findall(r"(?<!\\)\|", line))))
    assert len(widths) == len({header for header, _ in widths}) > 5


def test_a_report_fits_a_comment():
    run = run_documents.divergent()
    cases = [structs.replace(case, note="x" * 200) for case in run.cases]
    assert len(markdown_report(structs.replace(run, cases=cases))) < 65_536


def test_a_stage_inferred_from_a_known_fault_does_not_speak_of_a_ladder():
    run = structs.replace(run_documents.divergent(), ladder=[])
    for report in (markdown_report(run), html_report(run), text_report(run)):
        assert "known fault that" in report
        assert "intervention" not in report
        assert "0 of 0" not in report
    assert "inferred by intervention" in text_report(run_documents.divergent())


def test_failing_cases_are_cut_with_a_count():
    report = markdown_report(run_documents.divergent())
    assert report.count("| DIVERGENT | aggregate |") == 20
    assert "5 more of 25 are in `report.json`" in report


def test_reasons_are_cut_with_a_count():
    reasons = [f"reason {n}" for n in range(150)]
    run = structs.replace(run_documents.inconclusive(), reasons=reasons)
    assert "- `reason 5`\n- 144 more in `report.json`" in markdown_report(run)
    assert "144 more in report.json" in parsed(html_report(run)).text


def test_sections_without_content_are_left_out():
    report = markdown_report(run_documents.failed())
    assert re.findall("^#+ .*", report, re.MULTILINE) == [
        "## ERROR: `loss.py:f`",
        "### Repeat this audit",
    ]


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_figures_that_are_not_finite_are_shown_as_such(value):
    document = msgspec.to_builtins(run_documents.divergent())
    row = document["stages"][NAMES.index("aggregate")]
    row |= {"max_abs": value, "max_ulp": value, "budget_used": value, "smallest_detectable": value}
    row["worst"] = {"case": "P-1", "actual": value, "expected": 1.0, "budget": value}
    row["by_case"][0] = [*row["by_case"][0][:2], value, value, value]
    run = msgspec.convert(document, RunReport)
    view = stage_view(run.stages[NAMES.index("aggregate")], None)
    assert (view.max_abs, view.share, view.detectable) == (value, value, value)
    assert f"`{value}`, expected `1`" in markdown_report(run)
    assert value in parsed(html_report(run)).text


def test_share_of_the_budget():
    row = stage_row("gradient", "PASS", [["P-1", "PASS", 0.25, 1.0, 1.0]])
    assert budget_share(row) == "25 %"
    assert budget_share(structs.replace(row, budget_used=4e12)) == "4e+12 × budget"
    assert budget_share(structs.replace(row, budget_used=None)) == "-"
    worst = {"actual": "nan", "expected": 1.0}
    odd = structs.replace(row, status=Status.DIVERGENT, worst=worst)
    assert budget_share(odd) == "25 %, not finite"


def test_values_get_as_many_digits_as_they_need():
    assert digits(1.0, 2.0) == ("1", "2")
    assert digits(0.5, 0.5000001) == ("0.5", "0.5000001")
    assert digits(1.0, 1.0 + 2**-52) == ("1.0", "1.0000000000000002")
    assert digits("abc", 7) == ("abc", "7")
    assert digits(0.12950640916, "nan") == ("0.129506", "nan")


def test_worst_place_names_all_indices():
    worst = {"case": "P-1", "row": 0, "vocabulary_id": 7, "actual": 1, "expected": 2}
    row = stage_row("gradient", "PASS", [["P-1", "PASS", 0.25, 1.0, 1.0]])
    place = worst_place(structs.replace(row, worst=worst))
    assert place is not None
    assert (place.place, place.budget) == ("row 0, vocabulary id 7", "")
    assert worst_place(row) is None


@pytest.mark.parametrize(
    "name",
    slow_are(("divergent", "inconclusive"), ("declared", "divergent", "inconclusive", "error")),
)
def test_files_of_an_audit(name, tmp_path: Path):
    for stale in ("budget.png", "errors.png"):
        (tmp_path / stale).write_text("of an earlier run")
    run = run_documents.ALL[name]()
    write_reports(run, tmp_path)
    assert read_report(tmp_path / "report.json").runs == [run]
    pictures = {"overview.png"} | ({"budget.png", "errors.png"} if name != "error" else set())
    assert {path.name for path in tmp_path.iterdir()} == pictures | {
        "report.json",
        "report.md",
        "report.html",
        "report.junit.xml",
        "report.sarif",
    }
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\((\w+\.png)\)", markdown)) == pictures
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == len(pictures)
