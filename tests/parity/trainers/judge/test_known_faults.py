"""Known faults outside the loss, by numbers that a pencil gives."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sdpo.parity.faults.catalogue import BY_ID
from sdpo.parity.trainers.judge.known_faults import (
    WeightHistory,
    close,
    explained_scale,
    explained_teacher,
)

SCENARIO: Any = SimpleNamespace(
    self_distillation={"teacher_update_rate": 0.25},
    accumulation=1,
)
HISTORY = WeightHistory({"w": torch.tensor([8.0])}, [{"w": torch.tensor([v])} for v in (6.0, 4.0)])


def ids(labels):
    return [id_ for label in labels for id_ in BY_ID if label == BY_ID[id_].label]


@pytest.mark.parametrize(
    ("teacher", "faults"),
    [
        (7.0, []),  # 0.75 * 8 + 0.25 * 4
        (5.0, ["M24"]),  # 0.25 * 8 + 0.75 * 4
        (8.0, ["M110"]),
        (4.0, ["M111"]),
        (1.0, ["M112"]),  # 0.25 * 4
        (3.0, []),
    ],
)
def test_a_teacher_is_explained_by_the_fault_that_gives_its_weights(teacher, faults):
    labels = explained_teacher(SCENARIO, HISTORY, {"w": torch.tensor([teacher])})
    assert ids(labels) == faults


def test_an_average_after_each_step_differs_from_one_after_the_update():
    history = WeightHistory(HISTORY.teacher, [*HISTORY.students, {"w": torch.tensor([0.0])}])
    after_each_step = 0.75 * (0.75 * 8 + 0.25 * 4)
    labels = explained_teacher(SCENARIO, history, {"w": torch.tensor([after_each_step])})
    assert "M109" in ids(labels)


def test_a_scale_is_explained_by_the_number_of_accumulation_steps():
    assert explained_scale([0.25, 0.25], 4) == []
    assert ids(explained_scale([1.0, 1.0], 4)) == ["M11"]
    assert ids(explained_scale([1 / 16, math.nan], 4)) == ["M12"]
    assert explained_scale([1.0, 0.25], 4) == []
    assert explained_scale([math.nan], 4) == explained_scale([1.0], 1) == []


def test_weights_are_close_within_roundings_of_the_largest_of_their_tensor():
    largest = torch.tensor([1.0, 1e-6])
    step = torch.finfo(torch.float32).eps
    assert close({"w": largest}, {"w": largest + torch.tensor([0.0, step])})
    assert not close({"w": largest}, {"w": largest + torch.tensor([0.0, 100 * step])})
    assert not close({"w": largest}, {"w": torch.tensor([1.0, math.nan])})
