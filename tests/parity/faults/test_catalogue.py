"""The catalogue itself: complete, sourced, and read strictly."""

import re
from pathlib import Path

import pytest

from sdpo.fixtures import packaged_family
from sdpo.parity.audit.self_test import families
from sdpo.parity.cases.loss_case import loss_cases
from sdpo.parity.cases.stages import NAMES
from sdpo.parity.compare.loss_stages import ORDER
from sdpo.parity.faults import (
    aggregate,
    divergence,
    gradient,
    importance,
    log_probs,
    support,
    tail,
)
from sdpo.parity.faults.catalogue import (
    BY_ID,
    CATALOGUE,
    LOSS_FAULTS,
    merged_parts,
    read_catalogue,
)
from sdpo.parity.faults.reference_parts import REFERENCE

ROOT = Path(__file__).parents[3]


def test_every_reported_class_of_fault_has_an_entry():
    assert {f"M{number:02}" for number in range(1, 33)} <= BY_ID.keys()
    assert all(re.fullmatch(r"M\d\d+[a-z]?", fault.id) for fault in CATALOGUE)
    assert len({fault.name for fault in CATALOGUE}) == len(CATALOGUE)
    assert all(fault.source and fault.group and fault.stage in NAMES for fault in CATALOGUE)


def test_every_stage_of_the_loss_has_faults():
    assert {fault.stage for fault in LOSS_FAULTS} == set(ORDER)
    assert len(LOSS_FAULTS) >= 90


@pytest.mark.parametrize("fault", [f for f in CATALOGUE if not f.in_loss], ids=lambda f: f.id)
def test_a_fault_outside_the_loss_names_its_proof(fault):
    assert fault.proof
    if not fault.proof.startswith("none: "):
        file, name = fault.proof.split(": ", 1)
        assert name.split(";")[0] in (ROOT / file).read_text(encoding="utf-8")


def test_the_self_test_has_an_empty_batch_for_each_way_of_averaging():
    empty = [case for case in loss_cases(families()[0]) if not case.loss_mask.any()]
    ways = {entry["config"]["loss_agg_mode"] for entry in packaged_family("loss").manifest["cases"]}
    assert {case.config.loss_agg_mode for case in empty} == ways


def test_the_functions_of_the_loss_faults_are_each_used_by_one():
    modules = (log_probs, support, tail, divergence, importance, aggregate, gradient)
    ids = [id_ for module in modules for id_ in module.FAULTS]
    assert sorted(ids) == sorted(fault.id for fault in LOSS_FAULTS)
    assert all(fault.parts.keys() <= REFERENCE.keys() for fault in LOSS_FAULTS)
    parts = [tuple(sorted(fault.parts.items())) for fault in LOSS_FAULTS]
    assert len(set(parts)) == len(parts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[tail]\nM1 = {name = "a", group = "b", proof = "c"}', "not listed: \\['M05'\\]"),
        ('[tail]\nM05 = {name = "a", group = "b", proof = "c"}', "M05: needs either a proof or"),
        ('[tail]\nM1 = {name = "a", group = "b"}', "M1: needs either a proof or code"),
        ('[tail]\nM05 = {name = "a"}\n[support]\nM05 = {name = "b"}', "used twice: \\['M05'\\]"),
        ('[tails]\nM05 = {name = "a"}', "\\[tails\\]: faults of an unknown stage"),
        ("[tail]\nM05 = {name = 5}", "fault M05: Expected `str`, got `int`"),
        ('[tail]\nM05 = {name = "a", colour = "b"}', "fault M05: .* unknown field `colour`"),
        ('[tail]\nM05 = {group = "b"}', "fault M05: .* missing required field `name`"),
    ],
)
def test_a_table_that_is_wrong_is_refused_with_one_line(text, message):
    with pytest.raises(ValueError, match=message) as error:
        read_catalogue(text, {"M05": {"tail": tail.untouched}})
    assert "\n" not in str(error.value)


def test_one_fault_cannot_have_code_in_two_modules():
    with pytest.raises(ValueError, match="used twice: \\['M05'\\]"):
        merged_parts([tail.FAULTS, {"M05": {"tail": tail.untouched}}])


def test_a_group_of_a_table_holds_for_faults_that_name_none():
    text = '[tail]\ngroup = "usual"\nM9 = {name = "a"}\nM05b = {name = "b", group = "other"}'
    faults = read_catalogue(text, {"M9": {}, "M05b": {}})
    assert [(f.id, f.stage, f.group) for f in faults] == [
        ("M05b", "tail", "other"),
        ("M9", "tail", "usual"),
    ]
