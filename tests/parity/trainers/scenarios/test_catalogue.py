"""The table of scenarios: complete, tied to one change each, and read strictly."""

from dataclasses import fields, replace

import pytest

from sdpo.parity.trainers.scenarios.catalogue import (
    BY_ID,
    PLAIN,
    SCENARIOS,
    read_scenarios,
    with_settings,
)
from sdpo.parity.trainers.scenarios.fragments import GENERATIONS, OPTIMIZERS, SETTINGS
from sdpo.parity.trainers.scenarios.scenario import Scenario


def test_ids_are_the_46_of_the_contract_and_each_scenario_is_another_one():
    assert sorted(BY_ID) == [f"T{number:02}" for number in range(1, 47)]
    assert len({scenario.description for scenario in SCENARIOS}) == len(SCENARIOS)
    trainings = {repr(replace(s, id="", description="", tags=())) for s in SCENARIOS}
    assert len(trainings) == len(SCENARIOS)


def test_the_first_one_is_plain_and_the_others_say_by_tags_what_they_change():
    assert PLAIN.id == "T01"
    assert PLAIN.self_distillation == SETTINGS
    assert all(scenario.tags for scenario in SCENARIOS[1:])


@pytest.mark.parametrize(
    ("name", "field", "table"),
    [("generations", "generations", GENERATIONS), ("optimizer", "optimizer", OPTIMIZERS)],
)
def test_each_named_value_is_used(name, field, table):
    used = [getattr(scenario, field) for scenario in SCENARIOS]
    assert [name for name, value in table.items() if value not in used] == []


def test_each_setting_of_a_scenario_is_changed_somewhere():
    """One that no scenario changes would have no test; adding one here asks for a scenario."""
    neither = {"id", "description", "tags", "nudge", "disguise", "self_distillation"}
    names = [field.name for field in fields(Scenario) if field.name not in neither]
    same = [
        name
        for name in names
        if all(getattr(scenario, name) == getattr(PLAIN, name) for scenario in SCENARIOS)
    ]
    assert same == []


def test_an_entry_gives_what_it_changes_and_keeps_the_rest():
    text = """
    T1 = { description = "d", temperature = 0.5, settings = { distillation_topk = "none" } }
    T2 = { description = "e", optimizer = "AdamW", tags = ["a"] }
    """
    first, second = read_scenarios(text)
    assert (first.temperature, first.optimizer) == (0.5, {"name": "SGD", "lr": 0.5})
    assert first.self_distillation == {**SETTINGS, "distillation_topk": None}
    assert (second.optimizer, second.tags) == (OPTIMIZERS["AdamW"], ("a",))
    assert second.temperature == PLAIN.temperature


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("colour = 1", "scenario T1: unknown field 'colour'"),
        ('temperature = "hot"', "scenario T1: temperature: Expected `float`, got `str`"),
        ("accumulation = 65", "scenario T1: accumulation: Expected `int` <= 64"),
        ('generations = "ten groups"', "scenario T1: unknown name 'ten groups'"),
        ('optimizer = "Adam"', "scenario T1: unknown name 'Adam'"),
        ('dtype = "float8"', "scenario T1: dtype: Invalid enum value 'float8'"),
        ('nudge = "hard"', "nudge='hard'; valid are"),
        ("micro_batch_size = 3", "generations \\[0\\] do not have .* = 3 rows"),
    ],
)
def test_a_wrong_entry_is_refused_with_one_line(fields, message):
    with pytest.raises(ValueError, match=message) as error:
        read_scenarios(f'T1 = {{ description = "d", {fields} }}')
    assert "\n" not in str(error.value)


def test_settings_are_changed_in_a_copy():
    changed = with_settings(PLAIN, {"alpha": 1.0})
    assert changed.self_distillation["alpha"] == 1.0
    assert PLAIN.self_distillation["alpha"] == 0.5
