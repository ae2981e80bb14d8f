"""Shared set-up: one thread and fixed seeds, so that every test repeats to the bit."""

import pytest
import torch

from sdpo.determinism import reseed


@pytest.fixture(autouse=True)
def fixed_arithmetic():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    reseed(0)
    yield
    torch.set_num_threads(threads)
