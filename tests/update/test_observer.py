"""An observer defines what it wants to hear; the rest passes it by."""

import torch

from sdpo.update.observer import UpdateObserver


class Scales(UpdateObserver):
    def __init__(self):
        self.heard = []

    def on_micro_batch_end(self, batch, values, scale):
        self.heard.append(scale)


def test_an_observer_hears_only_what_it_defines():
    observer = Scales()
    observer.on_micro_batch_begin({})
    observer.on_micro_batch_end({}, {}, 0.5)
    observer.on_gradients(torch.nn.Linear(1, 1))
    assert observer.heard == [0.5]


def test_an_observer_without_a_state_leaves_nothing_in_a_checkpoint():
    observer = Scales()
    observer.resume({"unknown": 1}, {})
    assert (observer.counters(), observer.tensors()) == ({}, {})
