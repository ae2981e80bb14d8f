"""Stage `config`: our defaults and presets against the reference's layers."""

import importlib.resources
import tomllib
from collections.abc import Mapping
from typing import Any

from sdpo.fixtures import GoldenFamily
from sdpo.parity.compare.comparison import compare_exact
from sdpo.parity.compare.verdict import CaseResult
from sdpo.settings.config import SDPOConfig

PRESET_OF = {"sdpo_yaml": "verl_yaml", "dataclass": "verl_dataclass"}
Setting = bool | int | float | str | dict[str, bool] | None
"""A value as the files of settings have them."""
RECORDED = {"defaults_yaml": "verl_yaml", "defaults_dataclass": "verl_dataclass"}


def reference_settings() -> dict[str, dict[str, Setting]]:
    """Defaults of the reference's layers, from its provenance file."""
    text = (importlib.resources.files("sdpo.reference") / "PROVENANCE.toml").read_text("utf-8")
    layers = tomllib.loads(text)["settings"]
    return {
        layer: {name: null(value) for name, value in settings.items()}
        for layer, settings in layers.items()
    }


def null(value: Any) -> Any:
    """A value of the provenance file, in which "none" stands for the null that TOML lacks."""
    return None if value == "none" else value


def run_config_family(family: GoldenFamily) -> list[CaseResult]:
    """Presets against the layers written down in the provenance and those recorded with a family.

    `SDPOConfig()` itself must be the preset `verl_yaml`.
    """
    results = [
        _compare_settings(f"settings of {layer}", SDPOConfig.preset(PRESET_OF[layer]), settings)
        for layer, settings in reference_settings().items()
    ]
    for name, preset in RECORDED.items():
        if name in family.manifest:
            config = SDPOConfig.preset(preset)
            results.append(_compare_settings(name, config, family.manifest[name]))
    default = CaseResult("SDPOConfig()", "config")
    same = SDPOConfig() == SDPOConfig.preset("verl_yaml")
    default.comparisons.append(compare_exact("config", default.id, "SDPOConfig()", same, True))
    return [*results, default]


def _compare_settings(name: str, config: SDPOConfig, expected: Mapping[str, Setting]) -> CaseResult:
    """Compare the settings that a layer names."""
    result = CaseResult(name, "config")
    for field, value in expected.items():
        actual = getattr(config, field, "no such setting")
        result.comparisons.append(compare_exact("config", name, field, actual, value))
    return result
