"""Scenarios as JSON: read as they were written, and refused where they are none."""

import json
from dataclasses import fields, replace
from typing import Any

import pytest

from sdpo.parity.trainers.scenarios.catalogue import BY_ID, PLAIN, SCENARIOS
from sdpo.parity.trainers.scenarios.scenario import Scenario
from sdpo.parity.trainers.scenarios.scenario_json import ScenarioError, as_json, from_json


def document_of(scenario: Scenario) -> dict[str, Any]:
    """The scenario as JSON has it."""
    return json.loads(json.dumps(as_json(scenario), allow_nan=False))


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.id)
def test_a_scenario_is_read_as_it_was_written(scenario):
    document = document_of(scenario)
    found = from_json(document)
    assert document_of(found) == document
    assert replace(found, generations=()) == replace(scenario, generations=())


def changed(**changes):
    return document_of(PLAIN) | changes


def with_rows(count, conversations=1):
    generation = document_of(PLAIN)["generations"][0]
    questions, row = generation["conversations"][:1] * conversations, generation["rollouts"][0]
    return changed(generations=[{"conversations": questions, "rollouts": [row] * count}])


def with_row(**changes):
    document = document_of(PLAIN)
    document["generations"][0]["rollouts"][0] |= changes
    return document


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "Expected `object`, got `array`"),
        (changed(more=1), "unknown field `more`"),
        ({"id": "T01"}, "missing required field `description`"),
        (changed(optimizer={"name": "lr_scheduler"}), "Invalid enum value 'lr_scheduler'"),
        (changed(optimizer={"name": "SGD", "lr": []}), "got `array` - at `\\$.optimizer"),
        (changed(optimizer={"lr": 0.5}), "it has no name"),
        (changed(micro_batch_size=10**9), "`int` <= 64 - at `\\$.micro_batch_size`"),
        (changed(micro_batch_size=0), "`int` >= 1 - at `\\$.micro_batch_size`"),
        (changed(micro_batch_size=True), "Expected `int`, got `bool`"),
        (changed(micro_batch_size=3), "do not have micro_batch_size"),
        (changed(dtype="float8"), "Invalid enum value 'float8'"),
        (changed(nudge="everything"), "nudge='everything'"),
        (changed(self_distillation={"no_such": 1}), "no_such"),
        (changed(generations=[{"conversations": [], "rollouts": []}]), "`array` of length >= 1"),
        (with_rows(65), "`array` of length <= 64"),
        (with_rows(3, conversations=2), "3 rollouts for 2 conversations"),
        (with_row(completion="x" * 30_000), "`str` of length <= 20000"),
        (with_row(reward=None), "got `null` - at `.*reward`"),
        (with_row(reward="many"), "Invalid enum value 'many'"),
        (with_row(truncated="yes"), "Expected `bool`, got `str`"),
        (with_row(more=1), "unknown field `more`"),
    ],
)
def test_a_document_that_is_no_scenario_is_refused(document, message):
    with pytest.raises(ScenarioError, match=message) as error:
        from_json(document)
    assert "\n" not in str(error.value)


def test_a_reward_that_is_not_a_number_is_a_text_in_json():
    document = document_of(BY_ID["T39"])
    rewards = [row["reward"] for row in document["generations"][0]["rollouts"]]
    assert rewards == [1.0, "nan", 1.0, "nan"]
    read = [row.reward for row in from_json(document).generations[0].rollouts]
    assert [str(reward) for reward in read] == ["1.0", "nan", "1.0", "nan"]


def test_documents_have_the_fields_of_scenarios():
    assert document_of(PLAIN).keys() == {field.name for field in fields(Scenario)}
