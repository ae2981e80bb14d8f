"""The settings that a checkout has: those of the fork, or those of verl's own distillation."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from sdpo.fixtures import packaged_family
from sdpo.parity.candidates.live_settings import RECORDED, written_layers
from sdpo.parity.live_fork.checkout import CheckoutError
from sdpo.parity.live_fork.composed_settings import live_layers
from sdpo.parity.live_fork.modules import CONFIG, live_function
from sdpo.parity.live_fork.settings import RENAMED, Settings

COMPARED = ("dataclass", "sdpo_yaml")
VERL_DISTILLATION = "DistillationLossConfig"


def recorded_layers() -> dict[str, dict[str, str]]:
    """The compared layers of the recorded commit."""
    written, manifest = written_layers(), packaged_family("reprompt").manifest
    recorded = {layer: manifest[name] for name, layer in RECORDED.items()}
    return {
        layer: as_texts({**recorded.get(layer, {}), **written[layer]}) | _names(RENAMED, layer)
        for layer in COMPARED
    }


def _names(renamed: Mapping[str, Mapping[str, str]], layer: str) -> dict[str, str]:
    """Values that have another name in some checkouts, under the name that they have here."""
    if layer != "dataclass":
        return {}
    return {
        f"{setting}: {value}": repr(value) for setting, names in renamed.items() for value in names
    }


def _own_names() -> dict[str, str]:
    """The names that the checkout has for these values."""
    make = live_function(CONFIG, "SelfDistillationConfig")
    own: dict[str, str] = {}
    for setting, names in RENAMED.items():
        for value, other in names.items():
            try:
                make(**{setting: value})
            except ValueError:
                value_here = other
            else:
                value_here = value
            own[f"{setting}: {value}"] = repr(value_here)
    return own


def layers_of(root: Path) -> dict[str, dict[str, str]]:
    """Layers that the checkout has: the fork's, and the dataclass of verl's own distillation.

    Raises:
        CheckoutError: its files are those of SDPO and cannot be composed.
    """
    layers: dict[str, dict[str, str]] = {}
    if (root / "verl" / "trainer" / "config" / "sdpo.yaml").is_file():
        live = live_layers(root)
        layers = {layer: as_texts(live[layer]) for layer in COMPARED}
        layers["dataclass"] |= _own_names()
    try:
        kind = live_function(CONFIG, VERL_DISTILLATION)
    except CheckoutError:
        return layers
    made = kind()
    values = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
    filled_later = {"_target_", "global_batch_info", "loss_settings"}
    return layers | {
        VERL_DISTILLATION: as_texts({n: v for n, v in values.items() if n not in filled_later})
    }


def as_texts(settings: Settings) -> dict[str, str]:
    """Values as Python writes them, 2 and 2.0 alike."""
    return {
        name: repr(float(value)) if type(value) is int else repr(value)
        for name, value in settings.items()
    }
