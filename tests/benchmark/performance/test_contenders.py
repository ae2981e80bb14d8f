"""Every contender computes the same loss from the same tensors."""

import pytest
import torch

from sdpo.benchmark.performance.contenders import CONTENDERS, PEERS, LossShape, random_tensors

SMALL = LossShape(vocabulary=300, hidden=64, topk=5, tokens=16, active=0.5, dtype="float64")


def test_half_of_eight_rows_count():
    tensors = random_tensors(SMALL)
    assert tensors.student.shape == (8, 2, 64)
    assert tensors.self_distillation_mask.tolist() == [1.0] * 4 + [0.0] * 4


def test_the_same_shape_gives_the_same_numbers():
    first, second = random_tensors(SMALL), random_tensors(SMALL)
    assert torch.equal(first.student, second.student)
    assert torch.equal(first.weight, second.weight)


@pytest.mark.parametrize("name", [name for name in CONTENDERS if name != "projections"])
def test_losses_agree(name):
    module = {"sdpo-rl": "sdpo_rl", "trl": "trl.experimental.sdpo"}.get(name, "torch")
    pytest.importorskip(module)
    expected = CONTENDERS["reference"](random_tensors(SMALL))
    assert expected is not None
    torch.testing.assert_close(CONTENDERS[name](random_tensors(SMALL)), expected, rtol=1e-4, atol=0)


def test_the_floor_has_no_loss_and_the_peers_are_contenders():
    assert CONTENDERS["projections"](random_tensors(SMALL)) is None
    assert set(PEERS) < set(CONTENDERS)
