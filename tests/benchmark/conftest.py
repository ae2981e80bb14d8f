"""Executors shared by the tests of the benchmark."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdpo.benchmark.scoring.executor import Executor

_PUBLISHED = ("mbpp.jsonl", "sanitized-mbpp.json")


@pytest.fixture(scope="session")
def executor() -> Iterator[Executor]:
    """An executor with a limit that no honest program reaches."""
    with Executor(2, timeout=30) as shared:
        yield shared


@pytest.fixture(params=_PUBLISHED)
def published(request: pytest.FixtureRequest) -> Path:
    """Each published MBPP file, from the folder in SDPO_MBPP_DATA or beside the checkout."""
    beside = Path(__file__).parents[3] / "shared" / "data"
    path = Path(os.environ.get("SDPO_MBPP_DATA", beside)) / request.param
    if not path.exists():
        pytest.skip(f"{path} is not there; set SDPO_MBPP_DATA to a folder with {request.param}")
    return path
