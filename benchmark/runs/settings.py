"""Settings of a benchmark run: all in one TOML file, single ones overridden on the command line.

| section | what |
|---|---|
| top level | `method`, `seed`, `threads` |
| `[model]` | which model, how it is loaded, adapters |
| `[data]` | which problems, splits, and how a problem becomes a prompt |
| `[train]` | fields of `trl.GRPOConfig`, under its names |
| `[sdpo]` | fields of `sdpo.settings.config.SDPOConfig`, or of a peer's configuration |
| `[reward]` | what a completion is worth |
| `[eval]` | when and how pass@1 is measured |
| `[records]` | checkpoints, samples |
"""

import copy
import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdpo.settings.rules import nearest

CONFIGS = Path(__file__).parents[1] / "configs"
METHODS = {
    "grpo": "TRL's GRPO",
    "sdpo": "SDPO with this project's trainer",
    "hybrid": "GRPO and SDPO in one loss",
    "trl": "TRL's own experimental SDPO",
    "sdpo-rl": "the sdpo-rl package",
}
DEFAULTS: dict[str, Any] = {
    "method": "sdpo",
    "seed": 1,
    "threads": 1,
    "model": {
        "name": "embedded",
        "dtype": "float32",
        "four_bit": False,
        "lora_r": 0,
        "lora_alpha": 32,
        "lora_dropout": 0.0,
        "lora_targets": "all-linear",
    },
    "data": {
        "name": "embedded",
        "train_split": "train",
        "eval_split": "test",
        "system": "",
        "prompt": "{text}",
    },
    "train": {},
    "sdpo": {},
    "reward": {"all_or_nothing": False, "format_weight": 0.0, "timeout": 20.0, "workers": 1},
    "eval": {
        "every": 10,
        "batch_size": 64,
        "temperature": 0.0,
        "samples": 1,
        "max_new_tokens": 64,
        "limit": 0,
    },
    "records": {"checkpoint_every": 10, "samples_every": 10, "samples": 2},
}
REQUIRED_TRAIN = ("max_steps", "num_generations", "per_device_train_batch_size", "learning_rate")
# Set by the machinery itself.
RESERVED_TRAIN = {
    "output_dir": "--out",
    "seed": "the top-level `seed`",
    "save_steps": "records.checkpoint_every",
    "save_strategy": "records.checkpoint_every",
    "logging_steps": "nothing: every step is recorded",
    "shuffle_dataset": "nothing: the order of problems follows from the seed",
    "resume_from_checkpoint": "nothing: the same command continues a run",
}


class SettingsError(ValueError):
    """Settings that are unknown, malformed or contradict each other."""


def available() -> dict[str, Path]:
    """The packaged configurations by name."""
    return {path.stem: path for path in sorted(CONFIGS.glob("*.toml"))}


def load(
    source: str, overrides: Sequence[str] = (), changes: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The effective settings of a run.

    Args:
        source: name of a packaged configuration, or a TOML file.
        overrides: `section.key=value` each, the value in TOML or as plain text.
        changes: the same as a mapping from dotted names to values; applied last.

    Raises:
        SettingsError: with everything that is wrong.
    """
    settings = merged(DEFAULTS, read(source))
    for text in overrides:
        name, equals, value = text.partition("=")
        if not equals:
            raise SettingsError(f"--set {text!r}: write section.key=value")
        assign(settings, name.strip(), parse_value(value.strip()))
    for name, value in (changes or {}).items():
        assign(settings, name, value)
    check(settings)
    return settings


def read(source: str) -> dict[str, Any]:
    """The content of a configuration; `base = "NAME"` starts from another one.

    Raises:
        SettingsError: it does not exist or is not TOML.
    """
    path = available().get(source, Path(source))
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = list(available())
        raise SettingsError(
            f"there is no configuration {source!r}{nearest(source, known)}; packaged are "
            f"{', '.join(known)}, or give a TOML file"
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"cannot read {path}: {error}") from error
    base = content.pop("base", None)
    return content if base is None else merged(read(base), content)


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """The first mapping with the second laid over it, section by section."""
    result = copy.deepcopy(dict(first))
    for name, value in second.items():
        if isinstance(value, Mapping) and isinstance(result.get(name), Mapping):
            result[name] = merged(result[name], value)
        else:
            result[name] = copy.deepcopy(value)
    return result


def parse_value(text: str) -> Any:
    """A value as TOML writes it; anything else is plain text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def assign(settings: dict[str, Any], name: str, value: Any) -> None:
    """Set one value by its dotted name.

    Raises:
        SettingsError: a section that does not exist.
    """
    *sections, key = name.split(".")
    place = settings
    for section in sections:
        if not isinstance(place.get(section), dict):
            raise SettingsError(f"{name!r}: there is no section {section!r}")
        place = place[section]
    place[key] = value


def check(settings: Mapping[str, Any]) -> None:
    """Check what can be checked before anything is loaded.

    Raises:
        SettingsError: with everything that is wrong.
    """
    if found := [*_unknown(settings), *_values(settings)]:
        raise SettingsError("; ".join(found))


def _unknown(settings: Mapping[str, Any]) -> list[str]:
    free = ("train", "sdpo")
    found = [
        f"{name!r} is not a setting{nearest(name, list(DEFAULTS))}"
        for name in settings
        if name not in DEFAULTS
    ]
    for section, defaults in DEFAULTS.items():
        if not isinstance(defaults, dict):
            continue
        if not isinstance(settings[section], Mapping):
            found.append(f"[{section}] must be a section")
        elif section not in free:
            found += [
                f"{section}.{key} is not a setting{nearest(key, list(defaults))}"
                for key in settings[section]
                if key not in defaults
            ]
    for name, instead in RESERVED_TRAIN.items():
        if name in settings["train"]:
            found.append(f"train.{name} is set by {instead}")
    return found


def _values(settings: Mapping[str, Any]) -> list[str]:
    found = []
    for name, default in _flat(DEFAULTS).items():
        value = _flat(settings).get(name, default)
        fits = isinstance(value, type(default)) and not (
            isinstance(value, bool) and not isinstance(default, bool)
        )
        if not fits and not (isinstance(default, float) and type(value) is int):
            found.append(f"{name} is {value!r}, it must be {type(default).__name__}")
    if settings["method"] not in METHODS:
        found.append(f"method is {settings['method']!r}, it must be one of {', '.join(METHODS)}")
    train = settings["train"]
    if missing := [name for name in REQUIRED_TRAIN if name not in train]:
        return [*found, *(f"train.{name} is missing" for name in missing)]
    if "{text}" not in str(settings["data"]["prompt"]):
        found.append("data.prompt must contain {text}")
    for name in ("eval.every", "records.checkpoint_every"):
        value = _flat(settings)[name]
        if isinstance(value, int) and value < 1:
            found.append(f"{name} is {value}, it must be at least 1")
    return [*found, *_group_size(train)]


def _group_size(train: Mapping[str, Any]) -> list[str]:
    """The group size must divide the rows of one generation."""
    steps = train.get("steps_per_generation") or train.get("gradient_accumulation_steps", 1)
    rows, group = train["per_device_train_batch_size"] * steps, train["num_generations"]
    if group < 2:
        return [f"train.num_generations is {group}, a group needs at least 2 attempts"]
    if rows % group:
        return [
            f"train.num_generations is {group}, which does not divide the {rows} rows of a "
            f"generation (per_device_train_batch_size {train['per_device_train_batch_size']} x "
            f"{steps} steps); change one of them"
        ]
    return []


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted name."""
    return _flat(settings)


def digest(settings: Mapping[str, Any]) -> str:
    """A hash that is the same for the same settings in any order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What differs between two settings, one line each."""
    one, two = _flat(stored), _flat(wanted)
    return [
        f"{name}: {one.get(name, 'absent')!r} there, {two.get(name, 'absent')!r} now"
        for name in sorted(one.keys() | two.keys())
        if one.get(name) != two.get(name)
    ]
