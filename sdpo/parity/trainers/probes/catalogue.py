"""The causal probes: which input is changed alone, and what that must do (`catalogue.toml`)."""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from sdpo.parity.cases.stages import NAMES
from sdpo.parity.trainers.scenarios.catalogue import BY_ID, with_settings
from sdpo.parity.trainers.scenarios.scenario import Rollout, Scenario

_TABLE = Path(__file__).with_name("catalogue.toml")
_BOTH_LOGITS = ("student_logits", "teacher_logits")
VALUES = {*NAMES, *_BOTH_LOGITS, "parameters"}
"""Values of an update that a probe may look at."""


@dataclass(frozen=True)
class Probe:
    """One input that is changed, and what that must do; `catalogue.toml` describes the fields.

    `base` is the id of the scenario that `change` takes. A failure is charged to `stage`.
    """

    id: str
    question: str
    base: str
    change: Callable[[Scenario], Scenario]
    stage: str
    moves: tuple[str, ...] = ()
    stays: tuple[str, ...] = ()
    directed: bool = False


class _Change(msgspec.Struct, forbid_unknown_fields=True):
    """The key `change` of a probe; fields of the scenario that are None stay."""

    base: str
    settings: dict[str, Any] = {}
    rewards: tuple[float, ...] = ()
    completions: dict[int, str] = {}
    first_group_feedback: str | None = None
    nudge: str | None = None
    temperature: float | None = None
    grad_clip: float | None = None
    loss_agg_mode: str | None = None


class _Expectation(msgspec.Struct, forbid_unknown_fields=True):
    """The key `expect` of a probe."""

    stage: str
    moves: tuple[str, ...] = ()
    stays: tuple[str, ...] = ()
    directed: bool = False


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    """A probe in the table."""

    question: str
    change: _Change
    expect: _Expectation


def read_probes(text: str) -> tuple[Probe, ...]:
    """Read probes in the order of their table.

    Raises:
        ValueError: an unknown field, base, stage or value, or a value of the wrong type.
    """
    return tuple(_probe(id_, entry) for id_, entry in tomllib.loads(text).items())


def _probe(id_: str, fields: Mapping[str, object]) -> Probe:
    """Make a probe of its entry."""
    try:
        entry = msgspec.convert(fields, _Entry, str_keys=True)
    except msgspec.ValidationError as error:
        raise ValueError(f"probe {id_}: {error}") from error
    expect, change = entry.expect, partial(_changed, entry.change)
    moves, stays = _both_sides(expect.moves), _both_sides(expect.stays)
    values = {name.removesuffix("@1") for name in (*moves, *stays)}
    if unknown := sorted(values - VALUES) + sorted({expect.stage} - set(NAMES)):
        raise ValueError(f"probe {id_}: unknown {unknown}")
    if entry.change.base not in BY_ID:
        raise ValueError(f"probe {id_}: unknown scenario {entry.change.base!r}")
    base, question = entry.change.base, entry.question
    return Probe(id_, question, base, change, expect.stage, moves, stays, expect.directed)


def _both_sides(names: tuple[str, ...]) -> tuple[str, ...]:
    """Write `logits` out as those of student and teacher."""
    sides = (_BOTH_LOGITS if name == "logits" else (name,) for name in names)
    return tuple(name for side in sides for name in side)


def _changed(change: _Change, scenario: Scenario) -> Scenario:
    """Change a scenario."""
    first, *rest = scenario.generations
    rewards = change.rewards or tuple(rollout.reward for rollout in first.rollouts)
    rollouts: list[Rollout] = []
    for row, (rollout, reward) in enumerate(zip(first.rollouts, rewards, strict=True)):
        completion = change.completions.get(row, rollout.completion)
        rollout = replace(rollout, reward=reward, completion=completion)
        if change.first_group_feedback is not None and row < first.group_size:
            rollout = replace(rollout, feedback=change.first_group_feedback)
        rollouts.append(rollout)
    fields = ("nudge", "temperature", "grad_clip", "loss_agg_mode")
    changed = {n: value for n in fields if (value := getattr(change, n)) is not None}
    generations = (replace(first, rollouts=tuple(rollouts)), *rest)
    return replace(with_settings(scenario, change.settings), generations=generations, **changed)


PROBES = read_probes(_TABLE.read_text(encoding="utf-8"))
