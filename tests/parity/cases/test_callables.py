"""What a candidate's function takes, where it is, and how it is called by names."""

import functools

import pytest
import torch

from sdpo.parity.cases.callables import call_by_name, location_of, signature_of
from sdpo.parity.cases.checked_call import CandidateError


def half(value, divisor=2):
    return value / divisor


def test_a_function_gets_those_of_the_offered_arguments_that_it_takes():
    assert call_by_name("tail", half, {"value": 6, "other": 1}) == 3
    assert call_by_name("tail", half, {"value": 6, "divisor": 3}) == 2
    assert call_by_name("tail", lambda **given: sorted(given), {"b": 1, "a": 2}) == ["a", "b"]


def test_an_argument_that_is_not_offered_is_named_beside_those_that_are():
    with pytest.raises(CandidateError, match="needs the argument 'value'; this stage offers alpha"):
        call_by_name("tail", half, {"alpha": 1})


def test_a_decorated_function_is_where_it_was_written():
    @functools.wraps(half)
    def wrapped(*args):
        return half(*args)

    found = location_of(wrapped)
    assert found is not None
    assert found.file.endswith("test_callables.py")
    assert found.line == half.__code__.co_firstlineno


def test_what_python_does_not_know_has_no_place_and_takes_anything():
    assert location_of(len) is None
    assert list(signature_of(dict).parameters) == ["args", "kwargs"]


def test_the_signature_of_a_module_is_that_of_its_forward():
    class Loss(torch.nn.Module):
        def forward(self, student, teacher):
            return student - teacher

    assert list(signature_of(Loss()).parameters) == ["student", "teacher"]
