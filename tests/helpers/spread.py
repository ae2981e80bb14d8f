"""Some of many similar tests in the default suite, the others behind `-m slow`."""

from collections.abc import Container, Iterable
from typing import Any

import pytest


def one_in(step: int, values: Iterable[Any]) -> list[Any]:
    """Parameters, of which all but every `step`-th are slow."""
    return [
        value if number % step == 0 else pytest.param(value, marks=pytest.mark.slow)
        for number, value in enumerate(values)
    ]


def slow_are(slow: Container[Any], values: Iterable[Any]) -> list[Any]:
    """Parameters, of which those in `slow` are slow: others show what they show."""
    return [
        pytest.param(value, marks=pytest.mark.slow) if value in slow else value for value in values
    ]
