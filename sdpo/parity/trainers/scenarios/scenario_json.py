"""Scenarios as JSON, read without trust: every field is checked, and nothing in it is executed."""

import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from sdpo.parity.trainers.scenarios.scenario import Generation, Rollout, Scenario
from sdpo.settings.config import SDPOConfig

OPTIMIZERS = ("SGD", "AdamW")
MOST_ROWS, MOST_TEXT, MOST_STEPS = 64, 20_000, 64
DTYPES = ("float32", "bfloat16")
ROLES = ("system", "user", "assistant", "tool")
COUNTS = ("micro_batch_size", "accumulation", "steps_per_generation", "num_iterations", "processes")


class ScenarioError(Exception):
    """A document that is no scenario; the message says why."""


def as_json(scenario: Scenario) -> dict[str, Any]:
    """The scenario as a document; numbers that are not finite become texts."""
    return written(asdict(scenario))


def written(value: Any) -> Any:
    """A value without tuples, and without numbers that JSON lacks."""
    if isinstance(value, Mapping):
        return {key: written(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [written(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def from_json(document: Any) -> Scenario:
    """The scenario of a document.

    Raises:
        ScenarioError: it is none, or larger than a scenario may be.
    """
    names = {field.name for field in fields(Scenario)}
    if not isinstance(document, dict) or document.keys() != names:
        raise ScenarioError(f"a scenario must have the fields {sorted(names)}")
    try:
        found = document | {
            "generations": tuple(generation(entry) for entry in document["generations"]),
            "self_distillation": settings(document["self_distillation"]),
            "optimizer": optimizer(document["optimizer"]),
            "tags": tuple(text(tag) for tag in document["tags"]),
            "reward_weights": tuple(number(weight) for weight in document["reward_weights"]),
        }
        check(found)
        return Scenario(**found)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise ScenarioError(f"no scenario: {error}") from error


def generation(entry: Any) -> Generation:
    """Conversations and rollouts of one generation."""
    conversations = tuple(
        tuple({"role": one_of(m["role"], ROLES), "content": text(m["content"])} for m in messages)
        for messages in entry["conversations"]
    )
    rollouts = tuple(rollout(row) for row in entry["rollouts"])
    if not conversations or not all(conversations) or len(rollouts) % len(conversations):
        raise ValueError(f"{len(rollouts)} rollouts for {len(conversations)} conversations")
    if not 0 < len(rollouts) <= MOST_ROWS:
        raise ValueError(f"{len(rollouts)} rollouts, at most {MOST_ROWS} are allowed")
    return Generation(conversations, rollouts)


def rollout(row: Mapping[str, Any]) -> Rollout:
    """One row."""
    feedback, cut = row["feedback"], row["truncated"]
    if row.keys() != {field.name for field in fields(Rollout)} or not isinstance(cut, bool):
        raise ValueError(f"fields of a rollout: {sorted(row)}")
    known = None if feedback is None else text(feedback)
    return Rollout(text(row["completion"]), number(row["reward"]), known, cut)


def settings(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that `SDPOConfig` takes."""
    found = dict(entry)
    SDPOConfig(**found)
    return found


def optimizer(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Name and numbers of an optimizer."""
    numbers = {text(k): number(v) for k, v in entry.items() if k != "name"}
    return {"name": one_of(entry["name"], OPTIMIZERS)} | numbers


def check(found: Mapping[str, Any]) -> None:
    """Check plain fields.

    Raises:
        ValueError: one has a value that it cannot have.
    """
    for name in COUNTS:
        if type(found[name]) is not int or not 0 < found[name] <= MOST_STEPS:
            raise ValueError(f"{name}={found[name]!r}: a number from 1 to {MOST_STEPS}")
    if len(found["generations"]) > MOST_STEPS:
        raise ValueError(f"{len(found['generations'])} generations, at most {MOST_STEPS}")
    for name in ("temperature", "grad_clip", "dropout"):
        number(found[name])
    for name in ("id", "description", "loss_agg_mode", "nudge", "disguise"):
        text(found[name])
    if found["poisoned_token"] is not None:
        text(found["poisoned_token"])
    for name in ("lora", "moved"):
        if not isinstance(found[name], bool):
            raise ValueError(f"{name}={found[name]!r}: true or false")
    one_of(found["dtype"], DTYPES)


def one_of(value: Any, known: tuple[str, ...]) -> str:
    """A text that is known."""
    if value not in known:
        raise ValueError(f"{value!r}; valid are {', '.join(known)}")
    return value


def text(value: Any) -> str:
    """A text of bounded length."""
    if not isinstance(value, str) or len(value) > MOST_TEXT:
        raise ValueError(f"{value!r:.60} is no text of at most {MOST_TEXT} characters")
    return value


def number(value: Any) -> float:
    """A number; those that JSON lacks come as texts."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"{value!r:.60} is no number")
    return float(value) if isinstance(value, str) else value
