"""The scenarios that every trainer is audited with, as `catalogue.toml` lists them."""

import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from sdpo.parity.trainers.scenarios.fragments import GENERATIONS, OPTIMIZERS, SETTINGS
from sdpo.parity.trainers.scenarios.scenario import Scenario
from sdpo.parity.trainers.scenarios.scenario_json import checked_fields

_TABLE = Path(__file__).with_name("catalogue.toml")
_BY_NAME = {"generations": GENERATIONS, "optimizer": OPTIMIZERS}


def with_settings(scenario: Scenario, changes: Mapping[str, object]) -> Scenario:
    """Change some settings of SDPO; the text `none` stands for None, which TOML lacks."""
    values = {name: None if value == "none" else value for name, value in changes.items()}
    return replace(scenario, self_distillation={**scenario.self_distillation, **values})


def read_scenarios(text: str) -> tuple[Scenario, ...]:
    """Read scenarios in the order of their table.

    Raises:
        ValueError: an unknown field, a value that it cannot have, or an unknown name.
    """
    plain = Scenario(
        id="",
        description="",
        generations=GENERATIONS["one group"],
        self_distillation=SETTINGS,
        micro_batch_size=4,
        optimizer=OPTIMIZERS["SGD"],
    )
    scenarios = []
    for id_, entry in tomllib.loads(text).items():
        fields = dict(entry)
        try:
            named = {
                name: table[fields.pop(name)] for name, table in _BY_NAME.items() if name in fields
            }
            scenario = with_settings(plain, fields.pop("settings", {}))
            fields = checked_fields({"id": id_, "description": "", **fields})
            scenarios.append(replace(scenario, **named, **fields))
        except KeyError as error:
            raise ValueError(f"scenario {id_}: unknown name {error}") from error
        except ValueError as error:
            raise ValueError(f"scenario {id_}: {error}") from error
    return tuple(scenarios)


SCENARIOS = read_scenarios(_TABLE.read_text(encoding="utf-8"))
BY_ID: Mapping[str, Scenario] = MappingProxyType({s.id: s for s in SCENARIOS})
PLAIN = SCENARIOS[0]
