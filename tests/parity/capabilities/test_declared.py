"""What a loss can be asked, as its author says it."""

import subprocess
import sys
from dataclasses import replace

import pytest

from sdpo import capabilities
from sdpo.parity.capabilities.declared import (
    Capabilities,
    CapabilitiesError,
    checked,
    declared_by,
    declared_in_project,
)
from sdpo.parity.relations.transformed_cases import generated


def test_a_decorator_says_what_a_loss_takes():
    @capabilities(alpha={0.5}, topk=False)
    def loss(student_logits, teacher_logits, responses, response_mask):
        raise AssertionError

    assert declared_by(loss) == Capabilities(alpha=frozenset({0.5}), topk=False)
    assert declared_by(len) is None


@pytest.mark.parametrize(
    ("knobs", "case", "lacking"),
    [
        ({}, {"alpha": 0.25}, ""),
        ({"alpha": {0.5}}, {"alpha": 0.25}, "alpha=0.25"),
        ({"alpha": {0.5}}, {"full_logit_distillation": False, "alpha": 1.0}, ""),
        ({"sampled": False}, {"full_logit_distillation": False, "alpha": 1.0}, "mode sampled"),
        ({"topk": False}, {"distillation_topk": 6}, "distillation_topk=6"),
        ({"topk": {6, 8}}, {"distillation_topk": 6}, ""),
        ({"topk": {8}}, {"distillation_topk": 6}, "distillation_topk=6"),
        ({"tail": False}, {"distillation_topk": 6}, "mode topk_tail"),
        ({"temperature": False}, {"temperature": 0.7}, "temperature=0.7"),
        ({"temperature": {0.7}}, {}, "temperature=1"),
        ({"is_clip": {2.0}}, {"is_clip": 2.0}, ""),
        ({"is_clip": False}, {"is_clip": 2.0}, "is_clip=2.0"),
        ({"loss_agg_mode": {"token-mean"}}, {"loss_agg_mode": "seq-mean-token-sum"}, "seq-mean"),
    ],
)
def test_what_a_case_needs_beyond_that_is_named(knobs, case, lacking):
    settings = {"distillation_topk": None, "is_clip": None, **case}
    found = checked(knobs, "here").lacking(generated("case", 1, **settings))
    assert found.startswith(lacking)
    assert bool(found) == bool(lacking)


def test_weights_and_rows_without_teacher_can_be_lacking():
    case = generated("case", 1)
    weighted = replace(case, rollout_is_weights=case.responses + 1.0)
    declared = checked({"rollout_is_weights": False}, "here")
    assert declared.lacking(weighted) == "rollout_is_weights"
    assert declared.lacking(replace(case, rollout_is_weights=None)) == ""


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"alpah": {0.5}}, "here: unknown alpah; knobs are sampled, full_vocabulary, topk"),
        ({"alpha": {"half"}}, r"here: Expected `float`"),
        ({"tail": "no"}, "here: Expected `bool`"),
    ],
)
def test_what_makes_no_sense_is_refused(knobs, message):
    with pytest.raises(CapabilitiesError, match=message):
        checked(knobs, "here")


def test_a_table_of_the_project_says_the_same(tmp_path):
    (tmp_path / "pyproject.toml").write_text(
        '[tool.sdpo.capabilities."port.py:loss"]\nalpha = [0.5]\ntopk = false\n', encoding="utf-8"
    )
    found = declared_in_project("port.py:loss", tmp_path)
    assert found == Capabilities(alpha=frozenset({0.5}), topk=False)
    assert declared_in_project("port.py:other", tmp_path) is None
    assert declared_in_project("port.py:loss", tmp_path / "elsewhere") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alpha =", r"pyproject.toml is not TOML"),
        ('[tool.sdpo.capabilities."port.py:loss"]\nk = 3\n', r'\[tool.sdpo.*port.py:loss"\]: unk'),
    ],
)
def test_a_wrong_table_is_refused_by_name(tmp_path, text, message):
    (tmp_path / "pyproject.toml").write_text(text, encoding="utf-8")
    with pytest.raises(CapabilitiesError, match=message):
        declared_in_project("port.py:loss", tmp_path)


def test_declaring_loads_no_torch():
    code = "import sys, sdpo; sdpo.capabilities(topk=False); print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
