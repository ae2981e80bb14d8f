"""What is replaced while the fork's functions run, and put back afterwards."""

import torch

from sdpo.parity.live_fork.checkout import find_checkout
from sdpo.parity.live_fork.modules import DP_ACTOR, TORCH_FUNCTIONAL, live_module
from sdpo.parity.live_fork.one_process import FLASH_CROSS_ENTROPY, one_process


def test_rank_device_and_cross_entropy_are_replaced_inside_only(stand_in, monkeypatch, capsys):
    stand_in()
    find_checkout()
    actor, functional = live_module(DP_ACTOR), live_module(TORCH_FUNCTIONAL)
    monkeypatch.setattr(functional, FLASH_CROSS_ENTROPY, True)
    monkeypatch.setattr(actor, "get_device_name", lambda: "cuda")
    real = torch.distributed.get_rank
    with one_process():
        print("not shown")
        assert torch.distributed.get_rank() == 0
        assert (actor.get_device_name(), actor.get_device_id()) == ("cpu", "cpu")
        assert getattr(functional, FLASH_CROSS_ENTROPY) is False
    assert torch.distributed.get_rank is real
    assert actor.get_device_name() == "cuda"
    assert getattr(functional, FLASH_CROSS_ENTROPY) is True
    assert capsys.readouterr().out == ""
