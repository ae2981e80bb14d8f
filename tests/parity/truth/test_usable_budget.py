"""Which measured budgets are budgets: those within which a factor of two still shows."""

import math

from sdpo.parity.truth.tolerances import TOLERANCES
from sdpo.parity.truth.usable_budget import refusal, shows_a_factor_of_two


def test_a_value_of_half_the_size_is_over_every_budget_that_is_one():
    quarter = TOLERANCES.usable_budget_share
    below = math.nextafter(quarter, 0.0)
    assert shows_a_factor_of_two(below)
    assert 0.5 - below > below  # half of the value, brought nearer by all that rounding may do
    assert not shows_a_factor_of_two(quarter)
    assert not 0.5 - quarter > quarter
    assert not shows_a_factor_of_two(math.nan)


def test_a_budget_is_compared_with_the_size_of_its_value():
    assert shows_a_factor_of_two(1.0, size=-5.0)
    assert not shows_a_factor_of_two(1.0, size=4.0)
    assert shows_a_factor_of_two(1.0, size=0.0), "half of zero is right"


def test_a_refusal_names_each_value_with_its_share():
    assert refusal({}) == ""
    text = refusal({"gradient": 0.5, "loss": 2.0})
    assert "may move gradient by 0.5, loss by 2 of its size; from 0.25 on" in text
