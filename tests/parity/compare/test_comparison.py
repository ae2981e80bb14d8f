"""A value beside the reference's, element by element: statuses by arithmetic."""

from typing import Any

import numpy as np
import pytest

from sdpo.parity.compare.comparison import Expected, compare_exact, compare_numeric
from sdpo.parity.compare.improvements import ZERO_PROBABILITY
from sdpo.parity.compare.statuses import Status

REFERENCE = np.array([1.0, 2.0, 4.0])
NAN, INF = np.nan, np.inf


def compare(actual, reference: Any = REFERENCE, *, bound=0.1, truth=None, **others):
    reference = np.asarray(reference, dtype=float)
    bounds = np.full(reference.shape, bound)
    expected = Expected(
        reference, reference if truth is None else np.asarray(truth), bounds, 2.0**-23, **others
    )
    return compare_numeric("divergence", "case", np.asarray(actual, dtype=float), expected)


def test_equal_bits_match_and_have_no_worst_element():
    found = compare(REFERENCE)
    assert (found.status, found.worst, found.budget_used) == (Status.MATCH, {}, 0.0)
    assert found.compared == 3


def test_a_value_within_its_budget_passes_and_says_how_much_it_used():
    found = compare([1.0, 2.05, 4.0], labels=("token",))
    assert found.status == Status.PASS
    assert found.budget_used == pytest.approx(0.5)
    assert found.max_abs == pytest.approx(0.05)
    assert found.worst == {"token": 1, "actual": 2.05, "expected": 2.0, "budget": 0.1}


def test_the_references_own_distance_from_the_oracle_is_allowed_up_to_another_budget():
    assert compare([1.0, 2.15, 4.0], truth=[1.0, 2.06, 4.0]).status == Status.PASS  # 0.1 + 0.06
    assert compare([1.0, 2.25, 4.0], truth=[1.0, 9.0, 4.0]).status == Status.DIVERGENT  # 0.1 + 0.1


def test_a_value_beyond_its_budget_diverges_with_its_relative_size():
    found = compare([1.0, 2.0, 5.0])
    assert found.status == Status.DIVERGENT
    assert found.relative == pytest.approx(1 / np.sqrt(21))
    assert found.note == "1 of 3 over budget, 0.22 of the value"


def test_the_smallest_change_that_would_show_is_that_of_the_largest_element():
    assert compare(REFERENCE).smallest_detectable == pytest.approx(0.1 / 4)


@pytest.mark.parametrize(
    ("actual", "reference", "note"),
    [
        ([NAN, 2.0], [1.0, 2.0], "1 non-finite values where the reference is finite"),
        ([1.0, 2.0], [NAN, 2.0], "1 finite values where the reference is not"),
        ([INF, 2.0], [NAN, 2.0], "non-finite values of another kind than the reference's"),
    ],
)
def test_what_is_not_finite_must_be_so_on_both_sides_and_of_one_kind(actual, reference, note):
    found = compare(actual, reference)
    assert (found.status, found.note) == (Status.DIVERGENT, note)


def test_a_documented_improvement_holds_for_the_oracles_value_only():
    excused = {ZERO_PROBABILITY: np.array([True, False])}
    sides = {"reference": [NAN, 2.0], "truth": [0.5, 2.0], "excused": excused}
    declared = compare([0.55, 2.0], **sides)
    assert (declared.status, declared.effect) == (Status.DECLARED, ZERO_PROBABILITY)
    other = compare([0.7, 2.0], **sides)
    assert other.status == Status.DIVERGENT
    assert other.note.endswith("the definition gives 0.5")


def test_a_gradient_that_is_zero_throughout_never_passes():
    found = compare([0.0, 0.0, 0.0], bound=10.0, unit=1.0)
    assert (found.status, found.relative) == (Status.DIVERGENT, 1.0)
    assert compare([0.0, 0.0, 0.0], bound=10.0).status == Status.PASS


def test_all_elements_together_may_not_be_further_from_the_oracle_than_the_norm_limit():
    found = compare([1.09, 2.09, 4.09], whole=0.1)  # three times 0.09 are 0.156 in the norm
    assert found.status == Status.DIVERGENT
    assert found.note == "every element is within its budget, all together are not"
    assert compare([1.05, 2.05, 4.05], whole=0.1).status == Status.PASS


def test_another_shape_is_an_error_and_no_element_is_nothing():
    found = compare([1.0])
    assert (found.status, found.note) == (Status.ERROR, "shape (1,), expected (3,)")
    assert compare([], []).status == Status.NOT_COVERED


def test_exact_values_are_equal_or_not():
    assert compare_exact("config", "", "alpha", 0.5, 0.5).status == Status.MATCH
    found = compare_exact("config", "", "text", "x" * 300, "y")
    assert found.status == Status.DIVERGENT
    assert len(found.worst["actual"]) == 200
