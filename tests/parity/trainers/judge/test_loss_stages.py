"""The scale that a trainer puts on a micro-batch's gradient, and which stages it explains."""

import math

import pytest
import torch

from sdpo.parity.trainers.judge.loss_stages import unscaled

GRADIENT = torch.tensor([[3.0, -4.0]])


@pytest.mark.parametrize("scale", [1.0, 0.5, 1 / 16])
def test_a_wrong_scale_is_taken_off_and_reported(scale):
    gradient, found = unscaled(scale * GRADIENT, GRADIENT, accumulation=4)
    assert found == pytest.approx(scale)
    assert torch.allclose(gradient, GRADIENT)


def test_the_right_scale_is_exact():
    gradient, found = unscaled(0.25 * GRADIENT, GRADIENT, accumulation=4)
    assert found == 0.25
    assert torch.equal(gradient, GRADIENT)


def test_a_single_micro_batch_keeps_the_size_of_its_gradient():
    gradient, found = unscaled(2 * GRADIENT, GRADIENT, accumulation=1)
    assert found == 1.0
    assert torch.equal(gradient, 2 * GRADIENT)


def test_a_turned_gradient_keeps_its_direction():
    gradient, found = unscaled(-0.25 * GRADIENT, GRADIENT, accumulation=4)
    assert found == 0.25
    assert torch.equal(gradient, -GRADIENT)


def test_no_scale_is_known_where_the_reference_has_no_gradient():
    assert math.isnan(unscaled(GRADIENT, 0 * GRADIENT, accumulation=4)[1])
