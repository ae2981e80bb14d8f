"""Fixture for tests that run a stand-in of the fork's checkout in their own process."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.stand_in import write_missing_packages, write_stand_in


@pytest.fixture
def stand_in(tmp_path, monkeypatch) -> Iterator[Callable[..., Path]]:
    """Writes a stand-in checkout with texts replaced, and names it as the one to run."""
    stubs = write_missing_packages(tmp_path / "stubs")

    def write(**replaced) -> Path:
        folder = write_stand_in(tmp_path / "SDPO", {k: v for k, v in replaced.items() if k})
        monkeypatch.setenv("SDPO_VERL_CHECKOUT", str(folder))
        return folder

    monkeypatch.syspath_prepend(stubs)
    before = set(sys.modules)
    yield write
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("verl", *(path.name for path in stubs.iterdir())):
            del sys.modules[name]
