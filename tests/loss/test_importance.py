"""Importance ratios and rollout weights, from probabilities of a half, a quarter and an eighth."""

import math

import pytest
import torch
from torch import Tensor

from sdpo.loss.importance import importance, rollout_is_weights


def logs(*probabilities: float) -> Tensor:
    """Log-probs of the tokens of one row, `(1, T)`."""
    return torch.tensor([probabilities], dtype=torch.float64).log()


LOSS = torch.tensor([[8.0, 8.0, 8.0]], dtype=torch.float64)


def test_each_tokens_loss_is_multiplied_by_its_ratio_up_to_the_cap():
    """Now 1/4, 1/2 and 1/2, before 1/2, 1/2 and 1/8: ratios 1/2, 1 and 4, the last capped at 2."""
    now, before = logs(1 / 4, 1 / 2, 1 / 2), logs(1 / 2, 1 / 2, 1 / 8)
    found = importance(LOSS, student_log_probs=now, old_log_probs=before, is_clip=2.0)
    assert found.tolist() == [pytest.approx([4, 8, 16])]


def test_a_cap_below_one_holds_back_tokens_that_did_not_change():
    now = logs(1 / 2, 1 / 2, 1 / 2)
    found = importance(LOSS, student_log_probs=now, old_log_probs=now, is_clip=0.5)
    assert found.tolist() == [pytest.approx([4, 4, 4])]


def test_without_a_cap_there_is_no_ratio():
    now, before = logs(1 / 4, 1 / 2, 1 / 2), logs(1 / 2, 1 / 2, 1 / 8)
    found = importance(LOSS, student_log_probs=now, old_log_probs=before, is_clip=None)
    assert found.tolist() == LOSS.tolist()


def test_rollout_weights_multiply_what_the_ratio_left():
    """Ratio 1/2 times weight 3/4 leaves 3/8 of 8."""
    now, before = logs(1 / 4, 1 / 4, 1 / 4), logs(1 / 2, 1 / 2, 1 / 2)
    weights = torch.tensor([[3 / 4, 1.0, 0.0]], dtype=torch.float64)
    found = importance(
        LOSS,
        student_log_probs=now,
        old_log_probs=before,
        is_clip=2.0,
        rollout_is_weights=weights,
    )
    assert found.tolist() == [pytest.approx([3, 4, 0])]


def test_the_ratio_is_a_constant_of_the_gradient():
    """The loss times a ratio of 1/2 has the slope 1/2 by the loss, and none by the log-probs."""
    loss, now = LOSS[:, :1].clone().requires_grad_(), logs(1 / 4).requires_grad_()
    found = importance(loss, student_log_probs=now, old_log_probs=logs(1 / 2), is_clip=2.0)
    by_loss, by_now = torch.autograd.grad(found.sum(), (loss, now), allow_unused=True)
    assert by_loss.item() == pytest.approx(1 / 2)
    assert by_now is None


def test_log_ratios_are_kept_within_twenty():
    """A token that has become e³⁰ times likelier counts e²⁰ times, where no cap is below that."""
    now, before = torch.tensor([[-1.0]]), torch.tensor([[-31.0]])
    loss = torch.ones(1, 1)
    found = importance(loss, student_log_probs=now, old_log_probs=before, is_clip=math.inf)
    assert found.item() == pytest.approx(math.exp(20), rel=1e-6)


def test_rollout_weights_are_the_trainers_probability_by_the_samplers():
    """1/2 ÷ 1/4 = 2 and 1/2 ÷ 1/8 = 4, capped at 3; the third token is masked."""
    trainer, sampler = logs(1 / 2, 1 / 2, 1 / 2), logs(1 / 4, 1 / 8, 1 / 2)
    mask = torch.tensor([[1, 1, 0]])
    found = rollout_is_weights(trainer, sampler, mask, rollout_is_threshold=3.0)
    assert found.tolist() == [pytest.approx([2, 3, 0])]
