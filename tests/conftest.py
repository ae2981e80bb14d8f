"""Shared set-up: one thread and fixed seeds, so that every test repeats to the bit."""

import gc

import pytest
import torch

from sdpo.determinism import reseed


def pytest_collection_finish() -> None:
    """What imports left behind is not searched for garbage by each collection to come."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def fixed_arithmetic():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    reseed(0)
    yield
    torch.set_num_threads(threads)
