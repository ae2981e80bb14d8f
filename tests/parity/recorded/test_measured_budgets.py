"""Budgets that are measured, by numbers that a pencil gives."""

import pytest
import torch

from sdpo.parity.cases.tensor_distances import float32_error, largest_by_kind
from sdpo.parity.compare.statuses import Status
from sdpo.parity.recorded.measured_budgets import (
    budget_share,
    compare_all_measured,
    compare_measured,
)

VALUE = torch.tensor([4.0, -2.0])


def test_the_error_is_the_largest_distance_relative_to_the_scale():
    assert float32_error(torch.tensor([4.0, -2.5]), VALUE) == 0.125  # 0.5 of 4
    assert float32_error(torch.tensor([torch.nan, -2.0]), VALUE) == 0.0
    assert float32_error(torch.zeros(2), torch.zeros(2)) == 0.0


def test_of_a_kind_the_largest_error_counts():
    errors = [("grad", 1.0), ("loss", 3.0), ("grad", 2.0)]
    assert largest_by_kind(errors) == {"grad": 2.0, "loss": 3.0}


def test_a_budget_is_four_errors_and_eight_roundings():
    assert budget_share(0.01, 2.0**-23) == pytest.approx(0.04 + 4 * 2.0**-23)


@pytest.mark.parametrize(
    ("off", "status"), [(0.0, Status.MATCH), (0.15, Status.PASS), (0.17, Status.DIVERGENT)]
)
def test_a_value_may_be_off_by_its_budget_times_its_scale(off, status):
    # four times 1 % of the scale 4 are 0.16
    actual = VALUE + torch.tensor([off, 0.0])
    assert compare_measured("accumulate", "", VALUE, VALUE, actual, error=0.01).status == status


def test_zero_may_stand_for_an_undefined_loss_only_where_it_is_excused():
    undefined, zero = torch.tensor(torch.nan), torch.tensor(0.0)
    sides = ("aggregate", "", undefined, undefined, zero)
    assert compare_measured(*sides, excused=True).status == Status.DECLARED
    assert compare_measured(*sides).status == Status.DIVERGENT


def test_tensors_of_one_kind_share_the_largest_error():
    expected = {"a": VALUE, "b": VALUE}
    truth = {"a": VALUE, "b": VALUE + 0.04}  # 1 % off
    actual = {"a": VALUE + 0.1, "b": VALUE}
    found = compare_all_measured("optimizer", "", expected, truth, actual)
    assert [c.status for c in found] == [Status.PASS, Status.MATCH]
    alone = compare_all_measured("optimizer", "", {"a": VALUE}, {"a": VALUE}, {"a": VALUE + 0.1})
    assert [c.status for c in alone] == [Status.DIVERGENT]
    assert alone[0].note.startswith("a: ")
