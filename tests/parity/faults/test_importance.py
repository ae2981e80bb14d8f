"""Faults of `importance` on two tokens: one twice as likely as it was, one a quarter."""

from math import e

import pytest
import torch

from sdpo.parity.faults.reference_parts import LossState
from sdpo.settings.config import SDPOConfig
from tests.helpers.loss_state import logs, value

PRESENT, OLD, TEACHER = [0.6, 0.1], [0.3, 0.4], [0.15, 0.4]
CAP = 1.5


def two_tokens(weights=None):
    nothing = torch.empty(0)
    state = LossState(SDPOConfig(is_clip=CAP), nothing, nothing, nothing, torch.ones(1, 2))
    state.student_log_probs, state.teacher_log_probs = logs([PRESENT]), logs([TEACHER])
    state.old_log_probs, state.loss_mask = logs([OLD]), torch.ones(1, 2)
    state.rollout_is_weights = None if weights is None else torch.tensor([weights])
    return state


@pytest.mark.parametrize(
    ("fault", "ratios"),
    [
        ("M17b", [1.5, 0.25]),
        ("M17c", [2.0, 1.5]),
        ("M18", [2.25, 0.0625]),
        ("M71", [0.5, 1.5]),
        ("M72", [0.5, 1.0]),
        ("M73", [1.0, 1.0]),
        ("M76", [2.0, 0.25]),
        ("M77", [2.0, 0.25]),
        ("M78", [0.5**0.5, 0.5**0.5]),
        ("M79", [1.5 / 0.875, 0.25 / 0.875]),
        ("M80", [1.5, 1 / 1.5]),
        ("M125", [1.5, 1.0]),
    ],
)
def test_the_ratio_of_each_token(fault, ratios):
    """Ratios are 2 and 1/4 and the cap 1.5: 1.5 and 1/4, of mean 0.875."""
    assert value(fault, two_tokens())[0].tolist() == pytest.approx(ratios)


def test_a_log_ratio_of_twenty_is_kept_within_ten():
    state = two_tokens()
    state.config = SDPOConfig(is_clip=e**15)
    state.old_log_probs = state.student_log_probs - torch.tensor([[20.0, -20.0]])
    assert value("M124", state).log()[0].tolist() == pytest.approx([10.0, -10.0])


def test_a_cap_of_the_loss_divides_by_the_loss():
    """Losses of 2 and 1 at ratios of 2 and 1/4: the first would be 4, and is kept at 1.5."""
    state = two_tokens()
    state.token_losses = torch.tensor([[2.0, 1.0]])
    assert (state.token_losses * value("M128", state))[0].tolist() == pytest.approx([1.5, 0.25])


@pytest.mark.parametrize(
    ("fault", "weights"),
    [("M75", [9.0, 0.25]), ("M126", [1.0, 0.5]), ("M127", [3.0 / 1.75, 0.5 / 1.75])],
)
def test_rollout_weights_of_three_and_a_half(fault, weights):
    assert value(fault, two_tokens([3.0, 0.5]))[0].tolist() == pytest.approx(weights)


def test_the_product_of_ratio_and_weight_is_capped():
    from sdpo.parity.faults.importance import product_capped

    assert product_capped(two_tokens([0.5, 8.0]))[0].tolist() == pytest.approx([1.0, 1.5])
