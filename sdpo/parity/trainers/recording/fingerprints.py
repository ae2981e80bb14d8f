"""Fingerprints of what a trainer was handed, one for each part.

Two runs whose fingerprints are all equal are one experiment, whatever their scripts say: so it
shows if a change of the script never reached the trainer.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdpo.parity.trainers.recording.adapter_base import TrainerParts
from sdpo.parity.trainers.recording.scripted_world import Script

PARTS = ("model", "tokenizer", "data", "settings", "arguments", "sampled", "rewards")
"""What every run of a trainer derived from transformers' is known by."""
SIDES = ("padding_side", "truncation_side", "pad_token_id", "eos_token_id", "chat_template")


def fingerprints_of_parts(parts: TrainerParts) -> dict[str, str]:
    """Take the fingerprints of what the trainer is built from."""
    scenario, folder = parts.scenario, str(parts.folder)
    arguments = {k: v for k, v in parts.arguments.items() if not str(v).startswith(folder)}
    settings = asdict(parts.settings) | {"loss_agg_mode": scenario.loss_agg_mode}
    values: dict[str, Any] = {
        "model": parts.model.state_dict(),
        "tokenizer": [getattr(parts.tokenizer, name) for name in SIDES] + [len(parts.tokenizer)],
        "data": parts.dataset.to_dict(),
        "settings": settings,
        "arguments": [arguments, dict(scenario.optimizer), scenario.processes, scenario.dropout],
    }
    return {name: fingerprint(value) for name, value in values.items()}


def fingerprints_of_script(script: Script) -> dict[str, str]:
    """Take the fingerprints of what sampler and rewards have answered by now."""
    return {"sampled": fingerprint(script.sampled), "rewards": fingerprint(script.scored)}


def fingerprint(value: Any) -> str:
    """Digest texts, numbers and tensors, in mappings and sequences.

    Raises:
        TypeError: something else is among them.
    """
    digest = hashlib.sha256()
    for part in _flat(value):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _flat(value: Any) -> Iterator[bytes]:
    """Yield the parts of a value one after the other, each with its type."""
    if isinstance(value, Tensor):
        tensor = value.detach().cpu().contiguous()
        yield f"{tensor.dtype}{tuple(tensor.shape)}".encode()
        yield tensor.view(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, Mapping):
        yield b"{"
        for key in sorted(value):
            yield from _flat(key)
            yield from _flat(value[key])
        yield b"}"
    elif isinstance(value, (list, tuple)):
        yield b"["
        for entry in value:
            yield from _flat(entry)
        yield b"]"
    elif value is None or isinstance(value, (str, bool, int, float, Path)):
        yield f"{type(value).__name__} {value}".encode()
    else:
        raise TypeError(f"no fingerprint of a {type(value).__name__}: {value!r:.80}")
