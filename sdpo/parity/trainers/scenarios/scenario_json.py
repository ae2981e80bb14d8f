"""Scenarios as JSON, read without trust: every field is checked, and nothing in it is executed."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from sdpo.parity.trainers.scenarios.scenario import Generation, Rollout, Scenario
from sdpo.runtime.json_values import Json, Number, json_safe
from sdpo.settings.config import SDPOConfig

MOST_ROWS, MOST_TEXT, MOST_STEPS = 64, 20_000, 64

_Text = Annotated[str, Meta(max_length=MOST_TEXT)]
_Count = Annotated[int, Meta(ge=1, le=MOST_STEPS)]


class ScenarioError(Exception):
    """A document that is no scenario; the message says why."""


class _Message(msgspec.Struct, forbid_unknown_fields=True):
    role: Literal["system", "user", "assistant", "tool"]
    content: _Text


class _Rollout(msgspec.Struct, forbid_unknown_fields=True):
    completion: _Text
    reward: Number
    feedback: _Text | None
    truncated: bool


class _Generation(msgspec.Struct, forbid_unknown_fields=True):
    conversations: Annotated[
        tuple[Annotated[tuple[_Message, ...], Meta(min_length=1)], ...], Meta(min_length=1)
    ]
    rollouts: Annotated[tuple[_Rollout, ...], Meta(min_length=1, max_length=MOST_ROWS)]


class _Scenario(msgspec.Struct, forbid_unknown_fields=True):
    """The fields of `Scenario`, and which values a document may give them."""

    id: _Text
    description: _Text
    generations: Annotated[tuple[_Generation, ...], Meta(max_length=MOST_STEPS)]
    self_distillation: dict[str, Any]
    micro_batch_size: _Count
    accumulation: _Count
    steps_per_generation: _Count
    num_iterations: _Count
    temperature: float
    loss_agg_mode: _Text
    grad_clip: float
    optimizer: dict[str, Literal["SGD", "AdamW"] | float]
    processes: _Count
    dtype: Literal["float32", "bfloat16"]
    lora: bool
    dropout: float
    moved: bool
    reward_weights: tuple[float, ...]
    poisoned_token: _Text | None
    nudge: _Text
    disguise: _Text
    tags: tuple[_Text, ...]


_TYPES = {field.name: field.type for field in msgspec.structs.fields(_Scenario)}


def as_json(scenario: Scenario) -> Json:
    """Write a scenario as a document; numbers that are not finite become texts."""
    return json_safe(asdict(scenario))


def from_json(document: object) -> Scenario:
    """Read the scenario of a document.

    Raises:
        ScenarioError: it is none, or larger than a scenario may be.
    """
    try:
        entry = msgspec.convert(document, _Scenario)
        if not isinstance(entry.optimizer.get("name"), str):
            raise ValueError(f"optimizer={entry.optimizer}: it has no name")
        SDPOConfig(**entry.self_distillation)
        fields = msgspec.structs.asdict(entry)
        generations = tuple(_generation(generation) for generation in entry.generations)
        return Scenario(**{**fields, "generations": generations})
    except (ValueError, TypeError) as error:
        raise ScenarioError(f"no scenario: {error}") from error


def checked_fields(fields: Mapping[str, object]) -> dict[str, object]:
    """Check some fields of a scenario by themselves, and convert them.

    Raises:
        ValueError: a field that a scenario does not have, or a value that it cannot have.
    """
    checked: dict[str, object] = {}
    for name, value in fields.items():
        if name not in _TYPES:
            raise ValueError(f"unknown field {name!r}")
        try:
            checked[name] = msgspec.convert(value, _TYPES[name])
        except msgspec.ValidationError as error:
            raise ValueError(f"{name}: {error}") from error
    return checked


def _generation(entry: _Generation) -> Generation:
    """Make a generation of its entry.

    Raises:
        ValueError: conversations do not have the same number of rollouts.
    """
    if len(entry.rollouts) % len(entry.conversations):
        raise ValueError(
            f"{len(entry.rollouts)} rollouts for {len(entry.conversations)} conversations"
        )
    conversations = tuple(
        tuple({"role": message.role, "content": message.content} for message in messages)
        for messages in entry.conversations
    )
    rollouts = tuple(
        Rollout(row.completion, float(row.reward), row.feedback, row.truncated)
        for row in entry.rollouts
    )
    return Generation(conversations, rollouts)
