"""Write a trainer's run as one file: tensors in safetensors, the rest as JSON in its header.

So a run passes from the process that trained to the one that judges. Nothing in a file is executed.
"""

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sdpo.parity.trainers.scenarios.training_record import (
    MicroBatch,
    OptimizerStep,
    TrainerRun,
    Update,
)

_TENSOR = "$tensor"
_KINDS = {kind.__name__: kind for kind in (MicroBatch, OptimizerStep, TrainerRun, Update)}
_KIND = "$kind"


def write(path: Path, value: Any) -> None:
    """Write a run, or any JSON value in which tensors and parts of runs may stand.

    Raises:
        TypeError: something that is none of these.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_packed(value, tensors))
    save_file(tensors, path, {"document": text})


def read(path: Path) -> Any:
    """Read what was written.

    Raises:
        SafetensorError: damaged.
    """
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _unpacked(json.loads(file.metadata()["document"]), tensors)


def _packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Replace tensors by their names, and tuples by lists."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().contiguous().clone()
        return {_TENSOR: name}
    if is_dataclass(value) and type(value).__name__ in _KINDS:
        entries = {f.name: _packed(getattr(value, f.name), tensors) for f in fields(value)}
        return {_KIND: type(value).__name__} | entries
    if isinstance(value, Mapping):
        if wrong := [key for key in value if not isinstance(key, str)]:
            raise TypeError(f"key {wrong[0]!r} of a recorded mapping is no text")
        return {key: _packed(entry, tensors) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_packed(entry, tensors) for entry in value]
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise TypeError(f"a recorded value of type {type(value).__name__}: {value!r:.80}")


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Restore a packed value."""
    if isinstance(value, list):
        return [_unpacked(entry, tensors) for entry in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {_TENSOR}:
        return tensors[value[_TENSOR]]
    entries = {name: _unpacked(entry, tensors) for name, entry in value.items() if name != _KIND}
    return _KINDS[value[_KIND]](**entries) if _KIND in value else entries
