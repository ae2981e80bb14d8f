"""The settings that a checkout has: those of the fork, or those of verl's own distillation."""

import dataclasses
from pathlib import Path

from sdpo.parity.candidates.live_settings import written_layers
from sdpo.parity.live_fork.checkout import CheckoutError
from sdpo.parity.live_fork.composed_settings import live_layers
from sdpo.parity.live_fork.modules import CONFIG, live_function
from sdpo.parity.live_fork.settings import Settings

COMPARED = ("dataclass", "sdpo_yaml")
VERL_DISTILLATION = "DistillationLossConfig"


def recorded_layers() -> dict[str, dict[str, str]]:
    """The compared layers of the recorded commit."""
    written = written_layers()
    return {layer: as_texts(written[layer]) for layer in COMPARED}


def layers_of(root: Path) -> dict[str, dict[str, str]]:
    """Layers that the checkout has: the fork's, and the dataclass of verl's own distillation.

    Raises:
        CheckoutError: its files are those of SDPO and cannot be composed.
    """
    layers: dict[str, dict[str, str]] = {}
    if (root / "verl" / "trainer" / "config" / "sdpo.yaml").is_file():
        live = live_layers(root)
        layers = {layer: as_texts(live[layer]) for layer in COMPARED}
    try:
        kind = live_function(CONFIG, VERL_DISTILLATION)
    except CheckoutError:
        return layers
    made = kind()
    values = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
    filled_later = {"global_batch_info", "loss_settings"}
    return layers | {
        VERL_DISTILLATION: as_texts({n: v for n, v in values.items() if n not in filled_later})
    }


def as_texts(settings: Settings) -> dict[str, str]:
    """Values as Python writes them, 2 and 2.0 alike."""
    return {
        name: repr(float(value)) if type(value) is int else repr(value)
        for name, value in settings.items()
    }
