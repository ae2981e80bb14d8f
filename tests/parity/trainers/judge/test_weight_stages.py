"""Start and average of the teacher, and the optimizer's step, by numbers that a pencil gives."""

from types import SimpleNamespace
from typing import Any

import torch

from sdpo.parity.compare.statuses import Status
from sdpo.parity.trainers.judge.weight_stages import (
    ReferenceOptimizer,
    compare_start,
    compare_teacher,
)

SCENARIO: Any = SimpleNamespace(
    id="T01",
    self_distillation={"teacher_regularization": "ema", "teacher_update_rate": 0.25},
    optimizer={"name": "SGD", "lr": 0.5},
    grad_clip=1.0,
)


def weights(value):
    return {"w": torch.tensor([value, value])}


def teacher_after(actual, *, stepped=True):
    (found,) = compare_teacher(SCENARIO, weights(8.0), weights(4.0), weights(actual), stepped)
    return found.status


def test_the_teacher_moves_by_its_rate_once_an_update():
    assert teacher_after(7.0) == Status.MATCH  # 0.75 * 8 + 0.25 * 4
    assert teacher_after(6.25) == Status.DIVERGENT  # twice
    assert teacher_after(8.0) == Status.DIVERGENT  # not at all


def test_without_a_step_the_teacher_stays():
    assert teacher_after(8.0, stepped=False) == Status.MATCH
    assert teacher_after(7.0, stepped=False) == Status.DIVERGENT


def test_a_weight_that_is_missing_is_an_error():
    (found,) = compare_teacher(SCENARIO, weights(8.0), weights(4.0), {}, stepped=True)
    assert found.status == Status.ERROR
    assert "the first w" in found.note


def test_the_teacher_starts_at_the_student():
    assert compare_start(SCENARIO, weights(1.0), weights(1.0)) == []
    (found,) = compare_start(SCENARIO, weights(1.0), weights(3.0))
    assert (found.status, found.max_abs) == (Status.DIVERGENT, 2.0)


def test_a_step_is_clipped_and_one_of_infinite_norm_is_left_out():
    optimizer = ReferenceOptimizer(SCENARIO, weights(1.0))
    gradient = {"w": torch.tensor([3.0, 4.0])}
    after, truth, norm = optimizer.step(weights(1.0), gradient)
    assert norm == 5.0
    assert torch.allclose(after["w"], torch.tensor([0.7, 0.6]))  # 0.5 of (0.6, 0.8)
    assert truth["w"].dtype == torch.float64
    unclipped = optimizer.with_fault(weights(1.0), gradient, "M114")
    assert torch.allclose(unclipped["w"], torch.tensor([-0.5, -1.0]))
    after, _, _ = optimizer.step(weights(1.0), {"w": torch.tensor([torch.inf, 0.0])})
    assert torch.equal(after["w"], torch.tensor([1.0, 1.0]))
