"""How much deviations matter, by vectors that a pencil compares."""

import math

import pytest
import torch

from sdpo.parity.trainers.judge.effects import flat, gradient_measures, mean_loss, relative_distance


def test_the_mean_loss_is_that_of_the_micro_batches_that_show_one():
    shown = [{"aggregate": torch.tensor(1.0)}, {"aggregate": torch.tensor(2.0)}, {}]
    assert mean_loss(shown) == 1.5
    assert mean_loss([{}]) is None


def test_a_gradient_has_a_size_a_direction_and_a_distance():
    ours, theirs = torch.tensor([0.0, 6.0]), torch.tensor([3.0, 4.0])
    assert gradient_measures(ours, theirs) == {
        "gradient_ratio": 6 / 5,
        "gradient_cosine": pytest.approx(24 / 30),
        "gradient_distance": pytest.approx(math.sqrt(13) / 5),
    }
    assert gradient_measures(ours, torch.zeros(2)) == {}


def test_a_missing_gradient_of_ours_is_zero():
    ours, theirs = flat({"a": torch.ones(1)}, {"a": torch.ones(1), "b": torch.ones(2)})
    assert ours.tolist() == [1, 0, 0]
    assert theirs.tolist() == [1, 1, 1]


def test_weights_are_apart_in_units_of_the_way_gone():
    initial, expected, actual = ({"w": torch.tensor([v, 0.0])} for v in (1.0, 5.0, 4.0))
    assert relative_distance(initial, expected, actual) == 0.25
    assert relative_distance(initial, initial, actual) is None
    assert relative_distance({}, expected, actual) is None


def test_weights_that_are_not_finite_are_infinitely_far():
    sides = ({"w": torch.tensor([v])} for v in (1.0, 5.0, math.nan))
    assert relative_distance(*sides) == math.inf
