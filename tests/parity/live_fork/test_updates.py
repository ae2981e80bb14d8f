"""Values of the fork's actor by their places: update, optimizer step, micro-batch."""

from types import SimpleNamespace

import torch

from sdpo.parity.cases.stage_trace import GRAD_NORM, NO_STAGE, Moment, Place
from sdpo.parity.live_fork.checkout import find_checkout
from sdpo.parity.live_fork.updates import WatchedActor, last_of, listed


def test_the_last_micro_batch_of_a_step_is_found():
    moments = [Moment(0, 0, 0), Moment(0, 0, 1), Moment(0, 1, 0)]
    assert [last_of(moments, step) for step in (0, 1)] == moments[1:]


def test_one_number_and_several_are_both_a_list():
    assert listed(0.5) == [0.5]
    assert listed([0.5, 2]) == [0.5, 2.0]


def test_values_are_placed_at_their_micro_batch_and_those_of_a_step_at_its_last_one(stand_in):
    stand_in()
    find_checkout()
    watched = WatchedActor(SimpleNamespace(_forward_micro_batch=None, _optimizer_step=None))  # pyright: ignore[reportArgumentType]
    one, two = torch.tensor(1.0), torch.tensor(2.0)
    watched.tensors = {
        "u0.mb1.loss": one,
        "u0.mini0.grad.w": two,
        "u0.actor.w": one,
        "u0.teacher.w": two,
    }
    watched.moments, watched.grad_norms = [[Moment(0, 0, 0), Moment(0, 0, 1)]], [[3.0]]
    assert watched.trace() == {
        Place(0, 0, 1, "aggregate", "aggregate"): one,
        Place(0, 0, 1, "accumulate", "w"): two,
        Place(0, 0, 1, "optimizer", "w"): one,
        Place(0, 0, 1, "teacher_update", "w"): two,
        Place(0, 0, 1, NO_STAGE, GRAD_NORM): 3.0,
    }
