"""The cost of an audit, relative to the rest of the same step."""

from sdpo.benchmark.performance.callback_overhead import StepSeconds, costs


def test_costs_are_relative_to_the_same_step_and_spread_over_a_run():
    """Checks 1, 2 and 16 of a run measure budgets: 10 checks cost 2 · 100 % + 8 · 50 %."""
    kinds = {
        "plain": [StepSeconds(2.0, 0.0)],
        "check": [StepSeconds(2.0, 1.0), StepSeconds(4.0, 2.0)],
        "measured": [StepSeconds(2.0, 2.0)],
    }
    step, unchecked, check, middle, measured, rest, spread_out = costs(kinds, updates=100)
    assert (step, unchecked) == ("2.000", "0.000%")
    assert (check, middle, measured) == ("50.0%", "50.0% … 50.0%", "100.0%")
    assert rest == "1.50"
    assert spread_out == "6.00%"
