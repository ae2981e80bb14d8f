"""The smallest scenario on which a trainer still fails: fewer updates, groups, rows and settings.

Bounded by a count; nothing is drawn at random, so that it repeats.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from sdpo.parity.trainers.scenarios.catalogue import PLAIN
from sdpo.parity.trainers.scenarios.scenario import Generation, Scenario

MOST_TRIES = 4
SMALLEST_GROUP = 2

Fails = Callable[[Scenario], bool]

PLAIN_FIELDS = (
    "optimizer",
    "num_iterations",
    "temperature",
    "grad_clip",
    "dtype",
    "lora",
    "dropout",
    "moved",
    "reward_weights",
    "loss_agg_mode",
)


@dataclass
class Shrunk:
    """The smallest scenario found, and how many were tried."""

    scenario: Scenario
    tries: int = 0


def shrink(scenario: Scenario, fails: Fails, most_tries: int = MOST_TRIES) -> Shrunk:
    """Take parts away as long as the scenario fails.

    Args:
        scenario: one that fails.
        fails: whether a smaller scenario fails in the same way.
        most_tries: calls of `fails` at most.
    """
    found, progress = Shrunk(scenario), True
    while progress:
        progress = False
        for smaller in smaller_ones(found.scenario):
            if found.tries >= most_tries:
                return found
            found.tries += 1
            if fails(smaller):
                found.scenario, progress = smaller, True
                break
    return found


def smaller_ones(scenario: Scenario) -> Iterator[Scenario]:
    """Scenarios with one part less, the largest parts first."""
    if len(scenario.generations) > 1:
        yield replace(scenario, generations=scenario.generations[:1])
        yield replace(scenario, generations=scenario.generations[:-1])
    if plain := one_batch(scenario):
        yield plain
    yield from fewer_rows(scenario)
    changes = plain_settings(scenario)
    if changes:
        yield replace(scenario, **changes)
        if len(changes) > 1:
            yield from (replace(scenario, **{name: value}) for name, value in changes.items())


def one_batch(scenario: Scenario) -> Scenario | None:
    """All rows in one micro-batch of one process; None if they are already."""
    rows = len(scenario.generations[0].rollouts)
    if scenario.micro_batch_size == rows and scenario.num_iterations == 1:
        return None
    one = {"accumulation": 1, "steps_per_generation": 1, "num_iterations": 1, "processes": 1}
    return replace(scenario, micro_batch_size=rows, **one)


def fewer_rows(scenario: Scenario) -> Iterator[Scenario]:
    """Fewer groups, then fewer rows in each; only where all rows are one micro-batch."""
    if one_batch(scenario) is not None:
        return
    first = scenario.generations[0]
    groups, size = len(first.conversations), first.group_size
    if groups > 1:
        for kept in ([0], [groups - 1]):
            yield cut(scenario, kept, list(range(size)))
    if size > SMALLEST_GROUP:
        for removed in range(size - 1, -1, -1):
            kept_rows = [row for row in range(size) if row != removed]
            yield cut(scenario, list(range(groups)), kept_rows)


def cut(scenario: Scenario, groups: list[int], rows: list[int]) -> Scenario:
    """The scenario with some groups, and of each group some rows."""
    generations = tuple(
        Generation(
            tuple(generation.conversations[group] for group in groups),
            tuple(
                generation.rollouts[group * generation.group_size + row]
                for group in groups
                for row in rows
            ),
        )
        for generation in scenario.generations
    )
    return replace(scenario, generations=generations, micro_batch_size=len(groups) * len(rows))


def plain_settings(scenario: Scenario) -> dict[str, Any]:
    """What differs from the plain scenario, and its plain value."""
    found: dict[str, Any] = {
        name: getattr(PLAIN, name)
        for name in PLAIN_FIELDS
        if getattr(scenario, name) != getattr(PLAIN, name)
    }
    if scenario.self_distillation != PLAIN.self_distillation:
        found["self_distillation"] = PLAIN.self_distillation
    return found
