"""Public names are loaded from their modules when they are asked for."""

import math

import pytest

from sdpo.runtime.lazy_names import lazy_names


def test_a_name_comes_from_its_module():
    assert lazy_names("a_package", {"pi": "math"})("pi") == math.pi


def test_a_name_may_be_another_in_its_module():
    assert lazy_names("a_package", {"circle": "math:pi"})("circle") == math.pi


def test_a_module_is_not_loaded_before_its_name_is_asked_for():
    load = lazy_names("a_package", {"pi": "math", "absent": "a_module_that_is_not_there"})
    assert load("pi") == math.pi
    with pytest.raises(ModuleNotFoundError):
        load("absent")


def test_another_name_says_what_there_is():
    with pytest.raises(AttributeError, match=r"'a_package' has no attribute 'e'; it has \['pi'\]"):
        lazy_names("a_package", {"pi": "math"})("e")
