"""What a deterministic block sets, and that it leaves nothing behind."""

import random

import numpy as np
import torch

from sdpo.settings.determinism import deterministic, reseed


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), torch.rand(1).item()


def test_the_same_seed_gives_the_same_numbers_from_all_three_generators():
    reseed(3)
    first = drawn()
    reseed(3)
    assert drawn() == first
    reseed(4)
    assert all(new != old for new, old in zip(drawn(), first, strict=True))


def test_threads_and_dtype_are_those_asked_for_and_come_back():
    before = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with deterministic(seed=5, threads=1) as told:
            assert (torch.get_num_threads(), torch.get_default_dtype()) == (1, torch.float32)
            assert (told["seed"], told["torch_num_threads"]) == (5, 1)
        assert torch.get_num_threads() == before[0]
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(before[1])
