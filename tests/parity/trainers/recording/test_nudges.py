"""The one value that a scenario moves: which, by how much, and what is refused."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sdpo.parity.cases.checked_call import NotCoveredError
from sdpo.parity.trainers.recording.nudges import Nudge
from sdpo.parity.trainers.scenarios.catalogue import PLAIN
from sdpo.parity.trainers.scenarios.tiny_model import NUDGED

FURTHER = {"rollout_is_weights": "weights", "response_mask": "tool_mask"}


def nudge_of(name, teacher=None, further=FURTHER, model=None):
    adapter: Any = SimpleNamespace(teacher=lambda trainer: teacher, further_inputs=further)
    trainer: Any = SimpleNamespace(model=model)
    return Nudge(adapter, trainer, replace(PLAIN, nudge=name))


def inputs():
    return {
        "completion_mask": torch.tensor([[1, 1, 1], [1, 0, 0]]),
        "old_per_token_logps": torch.tensor([[-1.0, -2.0]]),
        "self_distillation_mask": torch.tensor([1.0, 1.0]),
    }


@pytest.mark.parametrize(
    ("name", "moved", "values"),
    [
        ("old_log_probs", "old_per_token_logps", [[-1.25, -2.25]]),
        ("distillation_mask", "self_distillation_mask", [0, 1]),
        ("rollout_is_weights", "weights", [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]),
        ("response_mask", "tool_mask", [[1, 0, 1], [1, 0, 1]]),
    ],
)
def test_an_input_is_moved_and_the_others_stay(name, moved, values):
    given, usual = inputs(), inputs()
    nudge = nudge_of(name)
    nudge.inputs(given)
    assert given.pop(moved).tolist() == values
    usual.pop(moved, None)
    assert all(torch.equal(given[key], usual[key]) for key in usual)
    assert nudge.fingerprint.keys() == {"nudge"}


def test_a_mask_that_is_zero_already_leaves_no_fingerprint():
    given = inputs() | {"self_distillation_mask": torch.tensor([0.0, 1.0])}
    nudge = nudge_of("distillation_mask")
    nudge.inputs(given)
    assert nudge.fingerprint == {}


def test_an_input_that_is_not_passed_is_not_covered():
    with pytest.raises(NotCoveredError, match="not given old_per_token_logps or old_log_probs"):
        nudge_of("old_log_probs").inputs({})
    with pytest.raises(NotCoveredError, match="no input for rollout_is_weights"):
        nudge_of("rollout_is_weights", further={}).inputs(inputs())


def module_with(name, value):
    *path, last = name.split(".")
    module = torch.nn.Module()
    inner = module
    for part in path:
        child = torch.nn.Module()
        inner.add_module(part, child)
        inner = child
    inner.register_parameter(last, torch.nn.Parameter(torch.tensor([value])))
    return module


@pytest.mark.parametrize(("name", "weights"), [("student", [5.0, 4.0]), ("teacher", [4.0, 5.0])])
def test_a_weight_of_one_side_grows_by_a_quarter(name, weights):
    student, teacher = module_with(NUDGED, 4.0), module_with(NUDGED, 4.0)
    nudge = nudge_of(name, teacher, model=student)
    nudge.weights()
    assert [m.get_parameter(NUDGED).item() for m in (student, teacher)] == weights
    assert nudge.fingerprint.keys() == {"nudge"}


def test_sides_that_are_one_module_cannot_be_moved_alone():
    student = module_with(NUDGED, 4.0)
    with pytest.raises(NotCoveredError, match="one module"):
        nudge_of("student", student, model=student).weights()


def test_without_a_nudge_nothing_moves():
    given = inputs()
    nudge = nudge_of("")
    nudge.weights()
    nudge.inputs(given)
    assert given.keys() == inputs().keys()
    assert nudge.fingerprint == {}
