"""Drafts of ledgers: refused until the reasons are there, then they declare just what was seen."""

from dataclasses import replace
from datetime import date

import pytest
from msgspec import structs

from sdpo.parity.compare.comparison import Comparison
from sdpo.parity.compare.statuses import Status
from sdpo.parity.compare.verdict import CaseResult
from sdpo.parity.explain.first_departure import Departure
from sdpo.parity.report.declared_deviations import DeclaredError, load_declared
from sdpo.parity.report.document import Evidence, Policy, assemble
from sdpo.parity.report.draft_ledger import draft, scope
from sdpo.parity.report.rejudge import policy_of, regate
from tests.helpers import run_documents

TAGS = {"P-1": ("core", "a"), "P-2": ("core",), "P-3": ("b",)}


def run_with(*divergent: Comparison, candidate='port.py:loss "x"\n# y'):
    results = []
    for id_, tags in TAGS.items():
        found = [c for c in divergent if c.case == id_]
        held = [Comparison("aggregate", Status.MATCH, id_, compared=1)]
        results.append(CaseResult(id_, "loss", tags, found or held))
    evidence = Evidence(candidate, "loss from logits", ("aggregate",), results)
    run = assemble(evidence, Policy(), lambda verdict, observed: Departure(observed))
    return structs.replace(run, explained_by=["M07 mean over masked rows"])


def departs(case, size, **changes):
    fields = {"effect": "value", "compared": 1, "max_abs": size, "note": "over"} | changes
    return Comparison("aggregate", Status.DIVERGENT, case, **fields)


def test_a_draft_is_refused_until_it_has_reasons_and_then_declares(tmp_path):
    run = run_with(departs("P-1", 0.5), departs("P-2", 0.25), departs("P-3", 0.0, effect="nan"))
    path = tmp_path / "ledger.toml"
    path.write_text(draft(run))
    with pytest.raises(DeclaredError, match="entry L01: reason is empty"):
        load_declared(path)
    path.write_text(draft(run).replace('reason = ""', 'reason = "meant so"'))
    value, nan = load_declared(path)
    assert (value.measured, value.range, value.fault) == (0.5, (0.45, 0.55), "M07")
    assert (value.cases, value.tag, nan.measured, nan.range) == ((), "core", 1.0, (1.0, 1.0))
    judged = regate(run, Policy((value, nan), today=date(2026, 1, 1)))
    assert (judged.verdict, judged.reasons) == ("DECLARED", [])


def test_growth_beyond_the_draft_fails(tmp_path):
    path = tmp_path / "ledger.toml"
    text = draft(run_with(departs("P-1", 0.5)))
    path.write_text(text.replace('reason = ""', 'reason = "meant so"'))
    policy = Policy(tuple(load_declared(path)))
    assert regate(run_with(departs("P-1", 0.54)), policy).verdict == "DECLARED"
    for other in ([departs("P-1", 0.6)], [departs("P-1", 0.4)], [departs("P-3", 0.5)], []):
        assert regate(run_with(*other), policy).verdict == "DIVERGENT", other


def test_what_is_declared_is_not_drafted_again():
    effect = "finite_where_reference_is_not"
    place = ("cases", 1, "comparisons", 0, "effect")
    run = run_documents.changed(run_documents.declared(), *place, value=effect)
    assert "[[deviation]]" not in draft(run)
    assert "[[deviation]]" in draft(structs.replace(run, declared=[]))
    assert policy_of(run).declared[0].id == "D01"


def test_what_follows_from_an_earlier_stage_needs_no_entry(tmp_path):
    cause = departs("P-1", 0.5)
    effect = replace(departs("P-1", 0.7), stage="gradient", inherits="aggregate")
    path = tmp_path / "ledger.toml"
    path.write_text(draft(run_with(cause, effect)).replace('reason = ""', 'reason = "meant so"'))
    (entry,) = load_declared(path)
    assert entry.stages == ("aggregate",)
    judged = regate(run_with(cause, effect), Policy((entry,)))
    assert (judged.verdict, judged.reasons) == ("DECLARED", [])


def test_what_cannot_be_declared_is_a_comment(tmp_path):
    text = draft(run_with(departs("P-1", 0.0, effect="", note="no graph\nto logits")))
    assert "# cannot be declared: P-1, aggregate: no graph to logits" in text
    assert "[[deviation]]" not in text


def test_a_draft_names_cases_where_no_tag_does():
    results = [CaseResult(id_, "loss", tags) for id_, tags in TAGS.items()]
    assert scope(set(TAGS), results) == ("*", [])
    assert scope({"P-1"}, results) == ("a", [])
    assert scope({"P-1", "P-3"}, results) == ("*", ["P-1", "P-3"])
