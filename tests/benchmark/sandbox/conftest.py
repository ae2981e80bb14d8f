"""A fork server for the tests that talk to its processes directly."""

from collections.abc import Iterator

import pytest

from sdpo.benchmark.sandbox.client import ForkServer


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    """A fork server, ended after the module."""
    started = ForkServer()
    yield started
    started.close()
