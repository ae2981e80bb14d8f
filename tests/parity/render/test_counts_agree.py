"""One counter: terminal, Markdown, HTML, JUnit and the README's tables give the same numbers."""

import importlib
import json
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest

from sdpo.fixtures import PACKAGED
from sdpo.parity.audit.audit import audit
from sdpo.parity.audit.request import Request
from sdpo.parity.compare.statuses import Status
from sdpo.parity.render.html import html_report
from sdpo.parity.render.junit import junit_report
from sdpo.parity.render.markdown import markdown_report
from sdpo.parity.render.text import case_counts, comparison_counts, status_counts, text_report
from sdpo.parity.report.run_report import InconsistentReportError
from tests.helpers import run_documents
from tests.helpers.run_documents import changed

USUAL = ("P-L001", "P-L005", "P-L018")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A real audit in which some comparisons have no element that counts."""
    home = tmp_path_factory.mktemp("goldens") / "loss"
    home.mkdir()
    manifest = json.loads((PACKAGED / "loss" / "cases.json").read_text())
    wanted = [entry for entry in manifest["cases"] if "all_masked_by_sd_mask" in entry["tags"]][:2]
    wanted += [entry for entry in manifest["cases"] if entry["id"] in USUAL]
    for entry in wanted:
        shutil.copy(PACKAGED / "loss" / entry["file"], home)
    (home / "cases.json").write_text(json.dumps(manifest | {"cases": wanted}))
    report = audit(Request("reference", goldens=(str(home.parent),)))
    assert any(row.empty for row in report.stages)
    report.check()
    return report


def from_text(run):
    rows = [line.split() for line in text_report(run).splitlines() if line.startswith("  ")]
    names = {row.name for row in run.stages}
    return {row[0]: (int(row[2]), int(row[3])) for row in rows if row and row[0] in names}


def from_markdown(run):
    part = markdown_report(run).partition("### Stages")[2].partition("\n\n")[2]
    rows = [line.split(" | ") for line in part.partition("\n\n")[0].splitlines()[2:]]
    return {row[1].strip("`"): (int(row[4]), int(row[5])) for row in rows}


def from_html(run):
    pattern = (
        r'<code>([a-z_]+)</code>(?:(?!</tr>).)*?data-label="compared">(\d+)<'
        r'(?:(?!</tr>).)*?data-label="bit-equal">(\d+)<'
    )
    page = html_report(run).replace("<wbr>", "")
    return {name: (int(a), int(b)) for name, a, b in re.findall(pattern, page, re.DOTALL)}


def from_junit(run):
    found = {}
    for element in ElementTree.fromstring(junit_report(run)).iter("testcase"):
        values = {p.get("name"): p.get("value") or "" for p in element.iter("property")}
        if "compared" in values:
            found[element.get("name")] = (int(values["compared"]), int(values["bit_equal"]))
    return found


def from_readme(run, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "docs"))
    generate = importlib.import_module("generate")

    pattern = re.compile(r"`([a-z_]+)` .* \| (?:(\d+) of (\d+)|-) \| [A-Z_]+ \|")
    rows = [pattern.search(line) for line in generate.table(run, run).splitlines()]
    numbers = {row[1]: (int(row[3] or 0), int(row[2] or 0)) for row in rows if row}
    return numbers, generate.summary(run)


def test_every_rendering_counts_the_same(run, monkeypatch):
    expected = {row.name: (row.comparisons - row.empty, row.bit_equal) for row in run.stages}
    assert from_text(run) == from_junit(run) == expected
    covered = {row.name for row in run.stages if row.status != Status.NOT_COVERED}
    assert from_markdown(run) == {name: expected[name] for name in covered}
    assert from_html(run) == from_markdown(run)
    readme, summary = from_readme(run, monkeypatch)
    assert readme == expected
    total = sum(number for number, _ in expected.values())
    assert total < run.totals.comparisons
    sentence = comparison_counts(run)
    assert sentence.startswith(f"{total} comparisons of {run.totals.elements} elements, ")
    for text in (text_report(run), markdown_report(run), html_report(run), summary):
        assert sentence in text
    for text in (markdown_report(run), html_report(run)):
        assert f"{run.totals.bit_equal} of {total} comparisons" in text
    assert run.totals.empty == run.totals.comparisons - total


def test_cases_add_up_in_every_rendering(run, monkeypatch):
    assert sum(run.totals.by_status.values()) == run.totals.cases == len(run.cases)
    sentence = case_counts(run)
    _, summary = from_readme(run, monkeypatch)
    for text in (text_report(run), markdown_report(run), html_report(run), summary):
        assert sentence in text


def test_a_report_that_only_has_comparisons_without_element_compares_nothing():
    rows = [run_documents.stage("log_probs", "NOT_COVERED", [["P-1", "NOT_COVERED", 0, 0, 0]])]
    rows[0] |= {"empty": 1, "by_case": []}
    run = run_documents.run("INCONCLUSIVE", rows)
    assert run.compared == 0
    assert "Nothing was compared" in markdown_report(run)


def test_a_total_that_does_not_add_up_is_refused(run):
    wrong = changed(run, "totals", "empty", value=run.empty + 1)
    with pytest.raises(InconsistentReportError, match="comparisons without element"):
        wrong.check()


def test_the_page_of_peers_counts_as_the_reports_do(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "docs"))
    peer_tables = importlib.import_module("peer_tables")

    run = run_documents.divergent()
    assert f"({status_counts(run)})" in peer_tables.summary(msgspec.to_builtins(run))
