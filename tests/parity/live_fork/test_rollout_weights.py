"""Rollout weights by the checkout's function, here of the stand-in."""

import math

import pytest
import torch

from sdpo.parity.live_fork.checkout import find_checkout
from sdpo.parity.live_fork.rollout_weights import live_rollout_weights


def test_weights_are_ratios_below_a_threshold(stand_in):
    stand_in()
    find_checkout()
    old, rollout = torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([[math.log(2), -2.0, 0.0]])
    mask = torch.tensor([[1, 1, 0]])
    weights, _ = live_rollout_weights(old, rollout, 2.0, mask)
    torch.testing.assert_close(weights, torch.tensor([[0.5, 2.0, 0.0]]))
    with pytest.raises(ValueError, match="threshold"):
        live_rollout_weights(old, rollout, 0.0, mask)
