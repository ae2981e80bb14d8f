"""The table of probes: complete, read strictly, and each changes what it says."""

import pytest

from sdpo.parity.cases.stages import NAMES
from sdpo.parity.trainers.probes.catalogue import PROBES, VALUES, read_probes
from sdpo.parity.trainers.scenarios.catalogue import BY_ID

NEVER_USED = {"C31", "C32", "C33"}
"""Ids of checks of the logged values (`judge/logged_metrics.py`)."""


def one(change, expect='stage = "tail"'):
    """A probe with this change."""
    (probe,) = read_probes(
        f'C1.question = "q"\nC1.change = {{ {change} }}\nC1.expect = {{ {expect} }}'
    )
    return probe


def test_ids_are_those_of_the_contract_and_each_question_is_another_one():
    ids = {f"C{number:02}" for number in range(1, 36)} - NEVER_USED
    assert {probe.id for probe in PROBES} == ids
    assert len({probe.question for probe in PROBES}) == len(PROBES)


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.id)
def test_a_probe_changes_its_base_and_looks_at_something(probe):
    assert probe.change(BY_ID[probe.base]) != BY_ID[probe.base]
    assert probe.moves or probe.stays
    assert not set(probe.moves) & set(probe.stays)
    assert probe.stage in NAMES
    assert {name.removesuffix("@1") for name in (*probe.moves, *probe.stays)} <= VALUES


def test_rewards_and_texts_go_to_their_rows():
    probe = one('base = "T01", rewards = [0.0, 1.0, 2.0, 3.0], completions = { 1 = "other" }')
    rows = probe.change(BY_ID["T01"]).generations[0].rollouts
    assert [row.reward for row in rows] == [0, 1, 2, 3]
    assert [row.completion == "other" for row in rows] == [False, True, False, False]


def test_feedback_goes_to_the_rows_of_the_first_conversation():
    probe = one('base = "T21", first_group_feedback = "no"')
    rows = probe.change(BY_ID["T21"]).generations[0].rollouts
    assert [row.feedback == "no" for row in rows] == [True] * 4 + [False] * 4


def test_settings_and_fields_of_the_scenario_are_changed():
    probe = one('base = "T01", settings = { alpha = 0.25 }, grad_clip = 2.0, nudge = "teacher"')
    changed = probe.change(BY_ID["T01"])
    assert changed.self_distillation["alpha"] == 0.25
    assert (changed.grad_clip, changed.nudge) == (2.0, "teacher")
    assert changed.temperature == BY_ID["T01"].temperature


def test_logits_are_those_of_both_sides():
    probe = one('base = "T01"', 'stage = "tail", stays = ["logits", "aggregate@1"]')
    assert probe.stays == ("student_logits", "teacher_logits", "aggregate@1")


@pytest.mark.parametrize(
    ("change", "expect", "message"),
    [
        ('base = "T99"', 'stage = "tail"', "probe C1: unknown scenario 'T99'"),
        ('base = "T01", colour = 1', 'stage = "tail"', "probe C1: .*unknown field `colour`"),
        ('base = "T01", grad_clip = "x"', 'stage = "tail"', "probe C1: Expected `float"),
        ('base = "T01"', 'stage = "tails"', "probe C1: unknown \\['tails'\\]"),
        ('base = "T01"', 'stage = "tail", moves = ["los"]', "probe C1: unknown \\['los'\\]"),
    ],
)
def test_a_wrong_entry_is_refused_with_one_line(change, expect, message):
    with pytest.raises(ValueError, match=message) as error:
        one(change, expect)
    assert "\n" not in str(error.value)
