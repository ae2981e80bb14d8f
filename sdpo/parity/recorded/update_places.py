"""When the values of a recorded update came about, and which weights between were not recorded.

A recording holds the per-token values of every micro-batch, the gradient's norm of every optimizer
step, and the weights of student and teacher after the whole update only. So what is wrong from the
second step on may be wrong because the first left other weights behind (`may_follow`).
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sdpo.fixtures import GoldenCase
from sdpo.parity.compare.comparison import Comparison
from sdpo.parity.compare.first_in_time import FAILING

Place = tuple[int, int, int]
Sides = tuple[Tensor, Tensor]


def last_of(outcome: Mapping[str, Any], step: int) -> int:
    """The last micro-batch of an optimizer step."""
    return max(outcome["micro_batches_per_optimizer_step"][step] - 1, 0)


def place_of(golden: GoldenCase, name: str) -> Place:
    """Update, optimizer step and micro-batch of a recorded tensor.

    Args:
        golden: the case.
        name: such as `u0.mb3.loss` (micro-batches are counted through the update),
            `u0.mini1.grad.…` (of an optimizer step), `u0.actor.…`, `u0.teacher.…`.
    """
    update, part = name.split(".")[:2]
    number = int(update.removeprefix("u"))
    outcome = golden.entry["results"][number]
    sizes = outcome["micro_batches_per_optimizer_step"]
    if part.startswith("mb"):
        micro_batches = [(step, m) for step, size in enumerate(sizes) for m in range(size)]
        return number, *micro_batches[int(part.removeprefix("mb"))]
    step = int(part.removeprefix("mini")) if part.startswith("mini") else len(sizes) - 1
    return number, step, last_of(outcome, step)


def placed(golden: GoldenCase, name: str, found: Comparison) -> Comparison:
    """The comparison of a recorded tensor with its place, and what it may follow from."""
    place = place_of(golden, name)
    return replace(found, place=place, may_follow=not_recorded(name, place))


def not_recorded(name: str, place: Place) -> tuple[str, ...]:
    """Stages since whose last recording weights may have moved that a value depends on."""
    _, part, value = name.split(".", 2)
    if part in ("actor", "teacher"):
        return ()
    moved = []
    if place[1] > 0 and not value.startswith("teacher_"):
        moved.append("optimizer")
    if place[1:] != (0, 0) and not value.startswith("student_"):
        moved.append("teacher_update")
    return tuple(moved)


def norms_placed(
    golden: GoldenCase, number: int, compare: Callable[[Tensor], Comparison], sides: Sides
) -> Comparison:
    """The comparison of an update's gradient norms, at the first optimizer step that is off.

    Args:
        golden: the case.
        number: of the update.
        compare: compares norms, one for each step, with the recorded ones.
        sides: the norms and the recorded ones, each `(steps,)`.
    """
    actual, recorded = sides
    found, step = compare(actual), 0
    if found.status in FAILING and actual.shape == recorded.shape:
        up_to = (torch.cat([actual[:n], recorded[n:]]) for n in range(1, len(actual) + 1))
        step = next(n for n, norms in enumerate(up_to) if compare(norms).status in FAILING)
    return placed(golden, f"u{number}.mini{step}.norm", found)
