"""Random cases are compared in bits, dtypes, texts and exceptions; what differs is counted."""

from dataclasses import dataclass

import pytest
import torch

from sdpo.parity.live_fork.checkout import CheckoutError
from sdpo.parity.random_cases.compare_sides import FamilyComparison, Values, differing


@dataclass
class Case:
    """Gives or raises what it is told."""

    theirs: Values | Exception
    ours: Values | Exception

    def fork(self) -> Values:
        return self.outcome(self.theirs)

    def transcribed(self) -> Values:
        return self.outcome(self.ours)

    def outcome(self, given: Values | Exception) -> Values:
        if isinstance(given, Exception):
            raise given
        return given

    def described(self) -> str:
        return "a case"


def compared(theirs, ours) -> FamilyComparison:
    comparison = FamilyComparison("loss")
    comparison.add(7, Case(theirs, ours))
    return comparison


NAN = torch.tensor([float("nan"), 0.5])


def test_equal_values_are_counted():
    values = {"a": NAN, "metric": [0.5, float("nan")], "text": "é"}
    comparison = compared(values, {**values, "a": NAN.clone()})
    assert (comparison.cases, comparison.values, comparison.differences) == (1, 3, [])


@pytest.mark.parametrize(
    "other",
    [torch.tensor([0.0, 0.5]), NAN.double(), NAN[None], torch.nextafter(NAN, NAN + 1), None],
)
def test_another_value_dtype_shape_or_last_bit_is_a_difference(other):
    assert differing({"a": NAN, "b": 1}, {"a": other, "b": 1}) == ["a"]


def test_a_value_that_one_side_lacks_is_a_difference():
    assert differing({"a": 1}, {"b": 1}) == ["a", "b"]


def test_the_same_class_of_exception_is_a_refusal_by_both():
    comparison = compared(ValueError("theirs"), ValueError("ours"))
    assert comparison.refused == {"ValueError": 1}
    assert comparison.differences == []


@pytest.mark.parametrize(
    ("theirs", "ours", "named"),
    [
        (ValueError(), KeyError(), "ValueError of the fork, KeyError of the transcription"),
        (ValueError(), {"a": 1}, "ValueError of the fork, a value of the transcription"),
        ({"a": 1}, KeyError(), "a value of the fork, KeyError of the transcription"),
    ],
)
def test_an_exception_of_one_side_alone_is_a_difference(theirs, ours, named):
    (difference,) = compared(theirs, ours).differences
    assert (difference.seed, difference.names, difference.case) == (7, (named,), "a case")


def test_a_checkout_that_cannot_be_run_is_no_refusal():
    with pytest.raises(CheckoutError, match="gone"):
        compared(CheckoutError("gone"), CheckoutError("gone"))
