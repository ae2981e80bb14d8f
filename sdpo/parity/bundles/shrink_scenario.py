"""Smaller scenarios of a trainer: fewer updates, groups and rows, and plainer settings."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from sdpo.parity.bundles.shrink import Reductions, shrink
from sdpo.parity.trainers.scenarios.catalogue import PLAIN
from sdpo.parity.trainers.scenarios.scenario import Generation, Scenario

MOST_TRIES = 4
_SMALLEST_GROUP = 2

_PLAIN_FIELDS = (
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


def shrink_scenario(
    scenario: Scenario, fails: Callable[[Scenario], bool], most_tries: int = MOST_TRIES
) -> tuple[Scenario, int]:
    """Shrink a scenario; arguments and result are those of `shrink`."""
    return shrink(scenario, _reductions(scenario), fails, most_tries)


def _reductions(scenario: Scenario) -> Reductions[Scenario]:
    """Take one part away, again and again, until every scenario with one part less holds."""
    progress = True
    while progress:
        progress = False
        for smaller in _with_one_part_less(scenario):
            if (yield smaller):
                scenario, progress = smaller, True
                break


def _with_one_part_less(scenario: Scenario) -> Iterator[Scenario]:
    """Yield the scenarios with one part less, the largest parts first."""
    if len(scenario.generations) > 1:
        yield replace(scenario, generations=scenario.generations[:1])
        yield replace(scenario, generations=scenario.generations[:-1])
    if plain := _in_one_batch(scenario):
        yield plain
    yield from _with_fewer_rows(scenario)
    changes = _plain_settings(scenario)
    if changes:
        yield replace(scenario, **changes)
        if len(changes) > 1:
            yield from (replace(scenario, **{name: value}) for name, value in changes.items())


def _in_one_batch(scenario: Scenario) -> Scenario | None:
    """Put all rows in one micro-batch of one process; None if they are already."""
    rows = len(scenario.generations[0].rollouts)
    if scenario.micro_batch_size == rows and scenario.num_iterations == 1:
        return None
    in_one = {"accumulation": 1, "steps_per_generation": 1, "num_iterations": 1, "processes": 1}
    return replace(scenario, micro_batch_size=rows, **in_one)


def _with_fewer_rows(scenario: Scenario) -> Iterator[Scenario]:
    """Yield fewer groups, then fewer rows in each; only where all rows are one micro-batch."""
    if _in_one_batch(scenario) is not None:
        return
    first = scenario.generations[0]
    groups, size = len(first.conversations), first.group_size
    if groups > 1:
        for kept in ([0], [groups - 1]):
            yield _cut(scenario, kept, list(range(size)))
    if size > _SMALLEST_GROUP:
        for removed in range(size - 1, -1, -1):
            kept_rows = [row for row in range(size) if row != removed]
            yield _cut(scenario, list(range(groups)), kept_rows)


def _cut(scenario: Scenario, groups: list[int], rows: list[int]) -> Scenario:
    """Keep some groups of a scenario, and of each group some rows."""
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


def _plain_settings(scenario: Scenario) -> dict[str, object]:
    """List the settings in which a scenario differs from the plain one, with plain values."""
    changes: dict[str, object] = {
        name: getattr(PLAIN, name)
        for name in _PLAIN_FIELDS
        if getattr(scenario, name) != getattr(PLAIN, name)
    }
    if scenario.self_distillation != PLAIN.self_distillation:
        changes["self_distillation"] = PLAIN.self_distillation
    return changes
