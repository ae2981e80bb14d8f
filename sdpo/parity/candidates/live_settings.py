"""Stage `config` of a live checkout: what its files set, against the recorded commit."""

import importlib.resources
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from sdpo.fixtures import GoldenFamily
from sdpo.parity.compare.comparison import compare_exact
from sdpo.parity.compare.verdict import CaseResult
from sdpo.parity.live_fork.composed_settings import live_layers
from sdpo.parity.live_fork.settings import Settings
from sdpo.parity.recorded.settings import null

RECORDED = {"defaults_yaml": "sdpo_yaml", "defaults_dataclass": "dataclass"}
"""Defaults recorded with the teacher prompts, and the layer that they are of."""

_ABSENT = "no such setting"


def run_live_config_family(root: Path, family: GoldenFamily) -> list[CaseResult]:
    """Compare each layer of a checkout with what `reference/PROVENANCE.toml` says of it.

    Args:
        root: the checkout's folder.
        family: recorded teacher prompts, whose manifest has two layers' defaults.

    Raises:
        CheckoutError: the checkout's files cannot be composed.
    """
    live = live_layers(root)
    results = [
        _compare_layer(f"settings of {layer}", live[layer], settings)
        for layer, settings in written_layers().items()
    ]
    for name, layer in RECORDED.items():
        if name in family.manifest:
            results.append(_compare_layer(name, live[layer], family.manifest[name]))
    return results


def written_layers() -> dict[str, Settings]:
    """Settings of the recorded commit by layer, as the provenance file has them."""
    text = (importlib.resources.files("sdpo.reference") / "PROVENANCE.toml").read_text("utf-8")
    tables = tomllib.loads(text)
    settings = cast(Mapping[str, Settings], tables["settings"])
    layers = cast(Mapping[str, Settings], tables["layers"])
    written = {
        "sdpo_yaml": {**settings["sdpo_yaml"], **layers["sdpo_yaml"]},
        "dataclass": settings["dataclass"],
        "actor_yaml": layers["actor_yaml"],
        "further": cast(Settings, tables["further"]),
    }
    return {
        layer: {name: null(value) for name, value in of_layer.items()}
        for layer, of_layer in written.items()
    }


def _compare_layer(name: str, live: Settings, written: Settings) -> CaseResult:
    """Compare the settings that are written down of a layer."""
    result = CaseResult(name, "config")
    for setting, value in written.items():
        actual = live.get(setting, _ABSENT)
        result.comparisons.append(compare_exact("config", name, setting, actual, value))
    return result
