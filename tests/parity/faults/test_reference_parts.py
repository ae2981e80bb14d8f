"""The reference's parts on one token, by hand."""

from math import log

import pytest
import torch

from tests.helpers.loss_state import on_support, one_row, trace_of


def test_a_token_with_two_of_three_entries_and_the_tail():
    """KL(teacher‖student) of 1/2, 1/4 and the rest 1/4 against 1/4, 1/2 and 1/4 is (log 2) / 4."""
    state = one_row([[0.5, 0.25, 0.25]], [[0.25, 0.5, 0.25]], [1], distillation_topk=2)
    trace = trace_of("", state)
    assert trace["log_probs.student"].exp().item() == pytest.approx(0.25)
    assert trace["support.indices"].tolist() == [[[0, 1]]]
    assert trace["tail.teacher"].exp()[0, 0].tolist() == pytest.approx([0.25, 0.5, 0.25])
    assert trace["loss"].item() == pytest.approx(log(2) / 4)


def test_what_weighs_a_token():
    """A divergence of (log 2) / 4 at a ratio of 1.5 and a rollout weight of 2."""
    state = one_row([[0.5, 0.25, 0.25]], [[0.25, 0.5, 0.25]], [1], is_clip=1.5)
    state.old_log_probs = torch.tensor([[log(0.1)]])
    state.rollout_is_weights = torch.tensor([[2.0]])
    assert trace_of("", state)["importance"].item() == pytest.approx(3 * log(2) / 4)


def test_a_ratio_without_old_log_probs_is_refused():
    with pytest.raises(ValueError, match="is_clip needs old_log_probs"):
        trace_of("", one_row([[0.5, 0.5]], [[0.5, 0.5]], [0], is_clip=2.0))


def test_k_is_limited_to_the_vocabulary():
    state = on_support([0.5, 0.5], [0.5, 0.5], distillation_topk=9)
    state.scaled_student = torch.zeros(1, 1, 3)
    assert state.support_size == 3
