"""The fork's loss on given logits, here of the stand-in, with values for the pencil.

Student (½, ½), teacher (¾, ¼): KL(teacher‖student) = ¾ ln 1.5 + ¼ ln 0.5 = 0.1308 nats.
"""

import math

import pytest
import torch

from sdpo.parity.live_fork.checkout import find_checkout
from sdpo.parity.live_fork.losses import LossCallError, live_loss, support_of
from sdpo.parity.record.record_loss import LogitInputs

KL = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
SETTINGS = {
    "full_logit_distillation": True,
    "alpha": 0.0,
    "distillation_topk": None,
    "distillation_add_tail": True,
    "is_clip": None,
}


def inputs(weights=None) -> LogitInputs:
    return LogitInputs(
        torch.zeros(1, 2, 2, requires_grad=True),
        torch.tensor([[[math.log(3.0), 0.0]] * 2]),
        torch.tensor([[0, 1]]),
        torch.tensor([[1, 1]]),
        None,
        None,
        weights,
    )


def loss(given, **changed):
    return live_loss(given, SETTINGS | changed, temperature=1.0, loss_agg_mode="token-mean")


def test_divergence_and_weighted_loss_are_told_apart(stand_in):
    stand_in()
    find_checkout()
    live = loss(inputs(torch.tensor([[2.0, 0.0]])))
    torch.testing.assert_close(live.divergence, torch.tensor([[KL, KL]]))
    torch.testing.assert_close(live.per_token_loss, torch.tensor([[2 * KL, 0.0]]))
    torch.testing.assert_close(live.loss, torch.tensor(KL))
    assert live.batch_num_tokens == 2


def test_log_probs_and_support_are_those_of_both_sides(stand_in):
    stand_in()
    find_checkout()
    live = loss(inputs(), distillation_topk=1, alpha=1.0)
    torch.testing.assert_close(live.teacher["log_probs"].exp(), torch.tensor([[0.75, 0.25]]))
    kind, kept = support_of(live.student) or ("", torch.zeros(0))
    assert (kind, kept.shape) == ("topk", (1, 2, 1))
    # the entry that is kept, and the tail
    for side in live.support:
        torch.testing.assert_close(side.exp().sum(-1), torch.ones(1, 2))


def test_a_loss_that_aggregates_elsewhere_is_named(stand_in):
    stand_in(**{"trainer/ppo/core_algos": ("total = agg_loss(", "total = loss.agg_loss(")})
    find_checkout()
    with pytest.raises(LossCallError, match="called agg_loss 0 times; expected once"):
        loss(inputs())
