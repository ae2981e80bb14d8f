"""Folders of golden data for the tests of verdicts."""

import pytest
from golden_subset import SOME, subset


@pytest.fixture(scope="module")
def goldens(tmp_path_factory):
    """Nine recorded cases that between them use every stage."""
    return subset(tmp_path_factory.mktemp("goldens"), SOME)


@pytest.fixture(scope="module")
def float32_goldens(tmp_path_factory):
    """Three cases whose budgets leave room for one part in ten million."""
    return subset(tmp_path_factory.mktemp("float32"), ("P-L005", "P-L018", "P-L030"))
