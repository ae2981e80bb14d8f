"""Declared deviations: what an entry covers, when it fails the gate, which files are refused."""

import json
from datetime import date

import msgspec
import pytest
from msgspec import structs

from sdpo.parity.compare.comparison import Comparison
from sdpo.parity.compare.statuses import Status
from sdpo.parity.compare.verdict import CaseResult
from sdpo.parity.report import declared_deviations
from sdpo.parity.report.declared_deviations import (
    DeclaredError,
    apply_declarations,
    load_declared,
    load_for,
)
from sdpo.parity.report.report_context import DeclaredRow
from tests.helpers.run_documents import ENTRY

TODAY = date(2026, 1, 1)


@pytest.fixture
def entries(tmp_path):
    path = tmp_path / "declared.toml"
    path.write_text(ENTRY)
    return load_declared(path)


def result(tags=("core",), id_="P-1", **changes) -> CaseResult:
    fields = {"stage": "divergence", "status": Status.DIVERGENT, "max_abs": 0.1, "effect": "value"}
    return CaseResult(id_, "loss", tags, [Comparison(**{**fields, **changes})])


def judged(entries, *results, candidate="loss.py:f", today=TODAY, **options):
    found = apply_declarations(results, candidate, entries, today=today, **options)
    return [r.status for r in found.results], found.complaints


def test_entry_declares_what_it_covers(entries):
    raw = result()
    found = apply_declarations([raw], "loss.py:f", entries, today=TODAY)
    assert found.results[0].status == Status.DECLARED
    assert found.results[0].comparisons[0].note == "declared as X1: as agreed"
    assert found.complaints == []
    row = found.rows[0]
    assert (row.seen, row.seen_cases, row.size) == (True, 1, 0.1)
    assert raw.status == Status.DIVERGENT, "the evidence stays as it was measured"


@pytest.mark.parametrize(
    ("other", "candidate"),
    [
        (result(stage="tail"), "loss.py:f"),
        (result(effect="nan"), "loss.py:f"),
        (result(tags=("huge_logits",)), "loss.py:f"),
        (result(), "other.py:f"),
    ],
)
def test_entry_covers_nothing_else(entries, other, candidate):
    statuses, _ = judged(entries, other, result(), candidate=candidate)
    assert statuses[0] == Status.DIVERGENT


def test_cases_that_are_not_named_are_not_covered(entries):
    (entry,) = entries
    named = structs.replace(entry, cases=("P-1",), tag="*", candidates=("*",))
    assert judged([named], result(), result(id_="P-2")) == ([Status.DECLARED, Status.DIVERGENT], [])


@pytest.mark.parametrize(
    ("results", "words"),
    [
        ([result(max_abs=0.6)], "X1 grew: largest |Δ| 0.6, allowed [0.05, 0.5]"),
        ([result(max_abs=0.01)], "X1 shrank: largest |Δ| 0.01, allowed [0.05, 0.5]"),
        ([result(status=Status.MATCH, effect="", max_abs=0.0)], "X1 no longer shows"),
    ],
)
def test_an_entry_that_grew_shrank_or_vanished_fails(entries, results, words):
    _, (complaint,) = judged(entries, *results)
    assert words in complaint


def test_an_expired_entry_fails_and_covers_nothing(entries):
    statuses, (complaint,) = judged(entries, result(), today=date(2030, 1, 2))
    assert (statuses, "X1 expired on 2030-01-01" in complaint) == ([Status.DIVERGENT], True)
    assert judged(entries, result(), today=date(2030, 1, 1)) == ([Status.DECLARED], [])


def test_an_entry_whose_cases_or_stages_did_not_run_is_not_judged(entries):
    assert judged(entries, result(tags=("huge_logits",), status=Status.MATCH)) == (
        [Status.MATCH],
        [],
    )
    assert judged(entries, result(status=Status.MATCH), stages=("tail",)) == ([Status.MATCH], [])
    assert judged(entries, result(status=Status.MATCH), stages=("divergence",))[1] != []


def test_the_size_of_a_text_that_differs_is_a_number_of_cases(entries):
    entry = structs.replace(entries[0], stages=("teacher_prompt",), measured=2, range=(2, 2))
    two = [result(stage="teacher_prompt", max_abs=0.0, id_=f"P-{n}") for n in range(2)]
    assert judged([entry], *two) == ([Status.DECLARED] * 2, [])
    third = result(stage="teacher_prompt", max_abs=0.0, id_="P-3")
    _, (complaint,) = judged([entry], *two, third)
    assert "X1 grew: cases 3, allowed [2, 2]" in complaint


def test_a_row_of_the_report_gives_the_entry_back(entries):
    (row,) = apply_declarations([result()], "loss.py:f", entries, today=TODAY).rows
    written = json.dumps(msgspec.to_builtins(row))
    assert msgspec.json.decode(written, type=DeclaredRow).entry == entries[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[deviation]]\nid = 'X'", "entry X: .*missing required field `candidates`"),
        (ENTRY.replace("divergence", "divergense"), "unknown stages"),
        (ENTRY.replace('["divergence"]', '["divergence", "config"]'), "entries of their own"),
        (
            ENTRY.replace('["divergence"]', '"divergence"'),
            r"got `str` - at `\$.stages`",
        ),
        (ENTRY.replace('["loss.py:f"]', "[]"), "at least one"),
        (ENTRY.replace('effect = "value"', 'effect = "x"'), "effect must be one of"),
        (ENTRY.replace("as agreed", " "), "reason is empty"),
        (ENTRY.replace('"as agreed"', "3"), r"Expected `str`, got `int` - at `\$.reason`"),
        (ENTRY.replace("M01", "M999"), "unknown fault 'M999'"),
        (ENTRY.replace("measured = 0.1", ""), "belong together"),
        (ENTRY.replace("measured = 0.1", "").replace("range = [0.05, 0.5]", ""), "are needed"),
        (ENTRY.replace("0.1", "0.9"), r"measured = 0.9 lies outside range = \[0.05, 0.5\]"),
        (ENTRY.replace("0.5]", "inf]"), "finite"),
        (ENTRY.replace(", 0.5]", "]"), r"length 2.* at `\$.range`"),
        (ENTRY.replace("2030-01-01", '"soon"'), r"at `\$.expires`"),
        (ENTRY + 'why = "x"', "unknown field `why`"),
        (ENTRY.replace("[[deviation]]", "[[deviations]]"), "only .*deviation.* entries"),
        ("not toml", "not TOML"),
    ],
)
def test_malformed_declarations_are_refused(tmp_path, text, words):
    path = tmp_path / "declared.toml"
    path.write_text(text)
    with pytest.raises(DeclaredError, match=words) as caught:
        load_declared(path)
    assert "\n" not in str(caught.value).strip()
    with pytest.raises(DeclaredError, match="cannot read"):
        load_declared(tmp_path / "absent.toml")


def test_a_packaged_ledger_is_read_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(declared_deviations, "LEDGERS", tmp_path)
    (tmp_path / "port.toml").write_text(ENTRY)
    (tmp_path / "evil.toml").write_text(ENTRY)
    assert "X1" not in {entry.id for entry in load_for()}
    assert [entry.id for entry in load_for(["port"])] == ["X1"]
    with pytest.raises(DeclaredError, match="cannot read"):
        load_for(["../evil"])
    with pytest.raises(DeclaredError, match="two entries have the id X1"):
        load_for([str(tmp_path / "port.toml"), str(tmp_path / "evil.toml")])
