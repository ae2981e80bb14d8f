"""Settings of all trainer tests: one thread, and only our own warnings are errors."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
THIRD_PARTY = (
    "ignore:.*is deprecated and will be removed in v6:FutureWarning",
    "ignore:.*pin_memory:UserWarning",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            for rule in THIRD_PARTY:
                item.add_marker(pytest.mark.filterwarnings(rule))


@pytest.fixture(scope="session", autouse=True)
def _imported_objects_are_not_searched() -> None:
    """Each training run collects garbage several times, mostly among what imports left behind."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
