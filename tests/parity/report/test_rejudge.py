"""Reports judged again: the same policy gives the same document, another one another verdict."""

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from msgspec import structs

from sdpo.parity.audit.rejudge_and_replay import regate_all
from sdpo.parity.audit.report_files import document
from sdpo.parity.report import declared_deviations
from sdpo.parity.report.declared_deviations import load_declared
from sdpo.parity.report.document import Policy
from sdpo.parity.report.rejudge import policy_of, regate, tightened
from sdpo.parity.report.report_context import DeclaredRow
from sdpo.parity.report.run_report import ReportError, RunReport, read_report
from tests.helpers import run_documents
from tests.helpers.run_documents import ENTRY

PASSING = run_documents.passing()


def again(run, declared=None, **limits):
    policy = policy_of(run)
    declared = policy.declared if declared is None else declared
    changed = structs.replace(policy.limits, **limits)
    return regate(run, replace(policy, declared=declared, limits=changed))


def deviation(**changes):
    row = run_documents.deviation() | {"effect": "value", "measured": 2.5, "range": [0, 3]}
    return msgspec.convert(row | changes, DeclaredRow).entry


def diverging():
    """A divergent run whose comparisons have the effect of an audit."""
    document = msgspec.to_builtins(run_documents.divergent())
    for case in document["cases"]:
        for comparison in case["comparisons"]:
            comparison["effect"] = "value"
    return msgspec.convert(document, RunReport)


def test_another_declaration_changes_the_verdict_and_the_evidence_stays():
    run = diverging()
    assert run.verdict == "DIVERGENT"
    judged = again(run, declared=(deviation(),))
    assert (judged.verdict, judged.exit_code) == ("DECLARED", 0)
    assert (judged.first_stage, judged.explained_by) == (None, [])
    back = regate(judged, Policy())
    assert (back.verdict, back.first_observed) == ("DIVERGENT", "aggregate")
    assert back.cases == regate(run, Policy()).cases


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"range": [0, 2.45]}, "grew"), ({"range": [2.5, 3], "stages": ["tail"]}, None)],
)
def test_a_declaration_that_does_not_hold_leaves_it_divergent(changes, words):
    judged = again(diverging(), declared=(deviation(**changes, measured=None),))
    assert judged.verdict == "DIVERGENT"
    assert words is None or words in judged.reasons[0]


def test_a_verdict_that_stays_keeps_where_it_departs():
    run = diverging()
    judged = again(run, coverage=1)
    assert (judged.verdict, judged.first_stage) == ("DIVERGENT", "tail")
    assert judged.explained_by == ["M07 mean over masked rows", "M15 | mask"]
    assert judged.explanations == run.explanations


def test_coverage_and_required_stages_make_a_pass_inconclusive():
    run = again(run_documents.passing(), stages=("divergence", "aggregate"))
    assert (run.verdict, run.coverage.covered) == ("PASS", ["divergence", "aggregate"])
    run = again(run, coverage=3)
    assert (run.verdict, run.exit_code) == ("INCONCLUSIVE", 3)
    assert run.message == "2 stages are covered, 3 are required"
    run = again(structs.replace(run_documents.inconclusive(), doubts=[]), require=("gradient",))
    assert "stage gradient was not covered" in run.reasons


def test_a_smaller_share_of_the_budget_is_stricter_and_never_looser():
    run = run_documents.passing()
    assert again(run, budget=0.25).verdict == "PASS"
    run = again(run, budget=0.2)
    assert (run.verdict, run.first_stage) == ("DIVERGENT", "log_probs")
    assert "more than 0.2 of the budget" in run.cases[1].note
    with pytest.raises(ReportError, match="never loosened"):
        tightened(policy_of(run), 0.5)
    with pytest.raises(ReportError, match="above 0"):
        tightened(policy_of(run), float("nan"))


def test_an_audit_that_could_not_start_stays_so():
    run = run_documents.failed()
    assert again(run) == run


def test_command_prints_the_new_document(tmp_path, capsys, monkeypatch):
    report, ledger = tmp_path / "report.json", tmp_path / "d.toml"
    report.write_text(document([diverging()]))
    assert regate_all(report, as_json=True) == 1
    ledger.write_text(
        ENTRY.replace("divergence", "aggregate").replace('tag = "core"', "").replace("0.5]", "3]")
    )
    assert load_declared(ledger)
    capsys.readouterr()
    out = tmp_path / "out"
    assert regate_all(report, declared=[ledger], out=out, as_json=True) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert run["verdict"] == "DECLARED"
    (written,) = read_report(out / "loss.py-f" / "report.json").runs
    assert json.loads(document([written]))["runs"] == [run]
    monkeypatch.setattr(declared_deviations, "LEDGERS", tmp_path)
    assert regate_all(report, declared=[Path("d")]) == 0, "a ledger by its name"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot read"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is no report"),
        ('{"schema_version": 2, "runs": []}', "is no report"),
        ('{"schema_version": 1}', "missing required field `runs`"),
        ('{"schema_version": 1, "runs": [{"candidate": "x"}]}', "missing required field `kind`"),
        (document([PASSING]).replace('"exit_code": 0', '"exit_code": 1'), "exit code: 1 ≠ 0"),
        (document([PASSING]).replace('"kind": ', '"sort": ""'), "is not JSON"),
        (document([PASSING]).replace('"kind"', '"sort"'), "unknown field `sort` - at `$.runs[0]`"),
    ],
)
def test_what_is_no_report_is_one_error_line(text, words, tmp_path, capsys):
    report = tmp_path / "report.json"
    if text is not None:
        report.write_text(text)
    assert regate_all(report) == 2
    printed = capsys.readouterr().out
    assert printed.startswith("ERROR ")
    assert words in printed
    assert len(printed.strip().splitlines()) == 1
