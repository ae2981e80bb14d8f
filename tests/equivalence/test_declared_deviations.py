"""Each intended difference of our loss from the reference: both sides, and its declaration."""

from datetime import date

import pytest
import torch
from loss_cases import FAMILY, case, comparisons, recorded

from sdpo.parity.adapters.own import Own
from sdpo.parity.compare import DECLARED, DIVERGENT, MATCH, NOT_COVERED, PASS, Comparison
from sdpo.parity.declared import (
    PACKAGED,
    DeclaredError,
    apply_declared,
    load_declared,
    vanished,
)

DECLARED_HERE = load_declared(PACKAGED)


def ids(tag: str) -> list[str]:
    return [golden.id for golden in FAMILY if tag in golden.tags]


@pytest.mark.parametrize("case_id", [i for i in ids("teacher_neg_inf") if i not in ("P-L132",)])
def test_teacher_with_probability_zero_contributes_zero(case_id):
    """D01: the reference computes 0 · inf = NaN for alpha below 1; ours is the definition."""
    loss = recorded(case_id)["out.loss"]
    ours = Own().trace(case(case_id))["aggregate"]
    if case(case_id).config.alpha < 1:
        assert loss.isnan()
        assert ours.isfinite()
    else:
        assert torch.equal(ours, loss), "infinite by definition, on both sides"


@pytest.mark.parametrize("case_id", ids("nan_at_masked_position"))
def test_nan_in_padding_reaches_neither_loss_nor_gradient(case_id):
    trace = Own().trace(case(case_id))
    assert not recorded(case_id)["out.grad_student_logits"].isfinite().all()
    assert trace["aggregate"].isfinite()
    assert trace["gradient"].isfinite().all()


@pytest.mark.parametrize(
    "case_id", ids("all_masked_by_sd_mask") + ids("all_masked_by_response_mask")
)
def test_empty_batch_has_loss_zero_and_gradient_zero(case_id):
    trace = Own().trace(case(case_id))
    assert trace["aggregate"] == 0
    assert not trace["gradient"].any()


def test_every_entry_is_seen_and_no_divergence_is_left():
    used, tags = set(), set()
    for golden in FAMILY:
        for comparison in comparisons(golden.id):
            judged, entry = apply_declared(comparison, "sdpo", golden.tags, DECLARED_HERE)
            assert judged.status in (MATCH, PASS, DECLARED, NOT_COVERED), judged
            used |= {entry} - {None}
            tags |= set(golden.tags)
    assert used == {entry.id for entry in DECLARED_HERE}
    assert vanished("sdpo", DECLARED_HERE, used, tags) == []
    assert [entry.id for entry in vanished("sdpo", DECLARED_HERE, set(), tags)] == sorted(used)


def divergent(**changes) -> Comparison:
    fields = {"stage": "divergence", "status": DIVERGENT, "max_abs": 0.1, "effect": "value"}
    return Comparison(**{**fields, **changes})


ENTRY = """
[[deviation]]
id = "X1"
candidates = ["loss.py:f"]
stages = ["divergence"]
tag = "core"
effect = "value"
reason = "as agreed"
largest = 0.5
expires = 2030-01-01
"""


@pytest.fixture
def entries(tmp_path):
    path = tmp_path / "declared.toml"
    path.write_text(ENTRY)
    return load_declared(path)


def test_entry_declares_what_it_covers(entries):
    judged, entry = apply_declared(divergent(), "loss.py:f", ["core"], entries)
    assert (judged.status, entry) == (DECLARED, "X1")


@pytest.mark.parametrize(
    ("comparison", "candidate", "tags"),
    [
        (divergent(max_abs=0.6), "loss.py:f", ["core"]),
        (divergent(stage="tail"), "loss.py:f", ["core"]),
        (divergent(effect="nan"), "loss.py:f", ["core"]),
        (divergent(), "other.py:f", ["core"]),
        (divergent(), "loss.py:f", ["huge_logits"]),
    ],
)
def test_entry_covers_nothing_else(entries, comparison, candidate, tags):
    judged, entry = apply_declared(comparison, candidate, tags, entries)
    assert (judged.status, entry) == (DIVERGENT, None)


def test_expired_entry_covers_nothing(entries, monkeypatch):
    class Later(date):
        @classmethod
        def today(cls):
            return date(2031, 1, 1)

    monkeypatch.setattr("sdpo.parity.declared.date", Later)
    judged, entry = apply_declared(divergent(), "loss.py:f", ["core"], entries)
    assert (judged.status, entry) == (DIVERGENT, None)
    assert "expired" in judged.note


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[deviation]]\nid = 1", "'candidates'"),
        (ENTRY.replace("divergence", "divergense"), "unknown stages"),
        (ENTRY.replace('effect = "value"', 'effect = "x"'), "effect"),
        (ENTRY + 'why = "x"', "unknown fields"),
        ("not toml", "not TOML"),
    ],
)
def test_malformed_declarations_are_refused(tmp_path, text, words):
    path = tmp_path / "declared.toml"
    path.write_text(text)
    with pytest.raises(DeclaredError, match=words):
        load_declared(path)
    with pytest.raises(DeclaredError, match="cannot read"):
        load_declared(tmp_path / "absent.toml")
