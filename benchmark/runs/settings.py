"""Reads the settings of a run from one TOML file; the command line overrides single ones.

| section | content |
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
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
from msgspec import Meta, Struct

from sdpo.benchmark.problems.prompts import DataSettings
from sdpo.benchmark.scoring.pass_at_1 import EvalSettings
from sdpo.settings.rules import nearest

CONFIGS = Path(__file__).parents[1] / "configs"
Tree = dict[str, Any]
"""Settings as TOML and JSON hold them."""
Method = Literal["grpo", "sdpo", "hybrid", "trl", "sdpo-rl"]
"""TRL's GRPO, this project's SDPO, both in one loss, TRL's experimental SDPO, sdpo-rl."""
Count = Annotated[int, Meta(ge=0)]
Period = Annotated[int, Meta(ge=1)]
REQUIRED_TRAIN = ("max_steps", "num_generations", "per_device_train_batch_size", "learning_rate")
COUNTS_OF_TRAIN = ("max_steps", "num_generations", "per_device_train_batch_size")
RESERVED_TRAIN = {
    "output_dir": "--out",
    "seed": "the top-level `seed`",
    "save_steps": "records.checkpoint_every",
    "save_strategy": "records.checkpoint_every",
    "logging_steps": "nothing: every step is recorded",
    "shuffle_dataset": "nothing: the order of problems follows from the seed",
    "resume_from_checkpoint": "nothing: the same command continues a run",
}
"""Fields of `[train]` that a run sets itself, and by what."""


class ModelSettings(Struct, frozen=True, kw_only=True):
    """Holds the section `[model]`: its name, dtype and LoRA adapters (none if `lora_r` is 0)."""

    name: str = "embedded"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    four_bit: bool = False
    lora_r: Count = 0
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    lora_targets: str = "all-linear"


class RewardSettings(Struct, frozen=True, kw_only=True):
    """Holds the section `[reward]`: what a completion is worth, and how its tests run."""

    all_or_nothing: bool = False
    format_weight: float = 0.0
    timeout: float = 20.0
    workers: Period = 1


class RecordSettings(Struct, frozen=True, kw_only=True):
    """Holds the section `[records]`: steps between checkpoints and samples, samples at a time."""

    checkpoint_every: Period = 10
    samples_every: Period = 10
    samples: Count = 2


class Settings(Struct, frozen=True, kw_only=True):
    """Holds all settings of a run; `train` and `sdpo` have fields of other configurations."""

    method: Method = "sdpo"
    seed: int = 1
    threads: Period = 1
    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    train: dict[str, Any] = {}
    sdpo: dict[str, Any] = {}
    reward: RewardSettings = RewardSettings()
    eval: EvalSettings = EvalSettings()
    records: RecordSettings = RecordSettings()


SECTIONS = ("model", "data", "train", "sdpo", "reward", "eval", "records")


class SettingsError(ValueError):
    """Settings that are unknown, malformed or contradict each other."""


def available() -> dict[str, Path]:
    """List the packaged configurations by name."""
    return {path.stem: path for path in sorted(CONFIGS.glob("*.toml"))}


def load(
    source: str, overrides: Sequence[str] = (), changes: Mapping[str, object] | None = None
) -> Settings:
    """Read the effective settings of a run.

    Args:
        source: name of a packaged configuration, or a TOML file.
        overrides: `section.key=value` each, the value in TOML or as plain text.
        changes: the same as a mapping from dotted names to values; applied last.

    Raises:
        SettingsError: with everything that is wrong.
    """
    content = _merged({section: {} for section in SECTIONS}, _read(source))
    for text in overrides:
        name, equals, value = text.partition("=")
        if not equals:
            raise SettingsError(f"--set {text!r}: write section.key=value")
        _assign(content, name.strip(), _parse_value(value.strip()))
    for name, value in (changes or {}).items():
        _assign(content, name, value)
    errors = _errors_of_fields(Settings, content)
    if all(isinstance(content[section], dict) for section in SECTIONS):
        errors += _errors_between_fields(content)
    if errors:
        raise SettingsError("; ".join(errors))
    return msgspec.convert(content, Settings)


def _read(source: str) -> Tree:
    """Read a configuration; `base = "NAME"` starts from another one.

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
    return content if base is None else _merged(_read(base), content)


def _merged(first: Tree, second: Tree) -> Tree:
    """Lay the second tree over the first, section by section."""
    result = copy.deepcopy(first)
    for name, value in second.items():
        if isinstance(value, dict) and isinstance(result.get(name), dict):
            result[name] = _merged(result[name], value)
        else:
            result[name] = copy.deepcopy(value)
    return result


def _parse_value(text: str) -> object:
    """Parse a value as TOML writes it; anything else is plain text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _assign(content: Tree, name: str, value: object) -> None:
    """Set one value by its dotted name.

    Raises:
        SettingsError: a section that does not exist.
    """
    *sections, key = name.split(".")
    for section in sections:
        if not isinstance(content.get(section), dict):
            raise SettingsError(f"{name!r}: there is no section {section!r}")
        content = content[section]
    content[key] = value


def _errors_of_fields(kind: type[Struct], content: Tree, prefix: str = "") -> list[str]:
    """List what is wrong with the names and types of a section, or of all settings."""
    kinds = {field.name: field.type for field in msgspec.structs.fields(kind)}
    errors = []
    for key, value in content.items():
        name = prefix + key
        if key not in kinds:
            errors.append(f"{name} is not a setting{nearest(key, list(kinds))}")
        elif key in SECTIONS and not isinstance(value, dict):
            errors.append(f"[{name}] must be a section")
        elif isinstance(kinds[key], type) and issubclass(kinds[key], Struct):
            errors += _errors_of_fields(kinds[key], value, f"{name}.")
        else:
            errors += _errors_of_value(name, value, kinds[key])
    return errors


def _errors_of_value(name: str, value: object, kind: Any) -> list[str]:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        if get_origin(kind) is Literal:
            return [f"{name} is {value!r}, it must be one of {', '.join(get_args(kind))}"]
        return [f"{name} is {value!r}: {error}"]
    return []


def _errors_between_fields(content: Tree) -> list[str]:
    """List what is wrong beyond names and types."""
    train = content["train"]
    errors = [
        f"train.{name} is set by {instead}"
        for name, instead in RESERVED_TRAIN.items()
        if name in train
    ]
    if "{text}" not in str(content["data"].get("prompt", "{text}")):
        errors.append("data.prompt must contain {text}")
    if missing := [f"train.{name} is missing" for name in REQUIRED_TRAIN if name not in train]:
        return [*errors, *missing]
    for name in COUNTS_OF_TRAIN:
        errors += _errors_of_value(f"train.{name}", train[name], Period)
    return errors or _errors_of_group_size(train)


def _errors_of_group_size(train: Mapping[str, int]) -> list[str]:
    """Check that the group size divides the rows of one generation."""
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


def _flat(settings: Tree, prefix: str = "") -> Tree:
    flat: Tree = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def digest(settings: Settings) -> str:
    """Hash settings, whatever their order."""
    text = json.dumps(msgspec.to_builtins(settings), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(stored: Tree, wanted: Settings) -> list[str]:
    """List what differs between the settings of a stored run and others."""
    before, now = _flat(stored), _flat(msgspec.to_builtins(wanted))
    return [
        f"{name}: {before.get(name, 'absent')!r} there, {now.get(name, 'absent')!r} now"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
