"""Shared set-up: one thread and fixed seeds, so that every test repeats to the bit."""

import gc
from collections.abc import Generator
from typing import Any

import pytest
import torch

from sdpo.determinism import reseed


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """Imports are not searched for garbage, nor is what they leave by each collection to come."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True)
def fixed_arithmetic():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    reseed(0)
    yield
    torch.set_num_threads(threads)
