"""Shared set-up: one thread and fixed seeds, so that every test repeats to the bit."""

import gc
import os
from collections.abc import Generator
from typing import Any

import pytest

pytest_plugins = (
    "tests.helpers.audit_fixtures",
    "tests.helpers.stand_in_fixtures",
    "tests.helpers.trainer_fixtures",
)

RARELY = 50_000

# also for fixtures of a whole session, and for processes that a test starts: two workers whose
# threads wait for each other take several times as long
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """Imports are not searched for garbage, nor is what they leave by each collection to come.

    Collections are rarer too: by default they take a fifteenth of the suite's time.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()
        gc.set_threshold(RARELY, 20, 20)


@pytest.fixture(autouse=True, scope="module")
def what_stays_is_not_searched() -> Generator[None]:
    """Trainings search all memory for garbage; what earlier files imported and keep is left out."""
    yield
    gc.freeze()


@pytest.fixture(autouse=True)
def fixed_arithmetic() -> None:
    # not at the head of the file: the process that only hands tests out need not load torch
    import torch

    from sdpo.settings.determinism import reseed

    torch.set_num_threads(1)
    reseed(0)
