"""Solutions per second of three ways to score them."""

import pytest

from sdpo.benchmark.performance import executor_rate
from sdpo.benchmark.problems.case import Case


def test_small_cases_are_different_solutions_with_asserts():
    cases = executor_rate.small_cases(5)
    assert [case.id for case in cases] == [0, 1, 2, 3, 4]
    assert len({case.completion for case in cases}) == 4
    assert "assert double(3) == 6" in cases[0].test_list


def test_the_table_has_medians_of_rates_and_of_ratios_within_a_repeat():
    rates = {"bare": [1.0, 10.0], "fresh": [2.0, 20.0], "executor": [4.0, 40.0]}
    table = executor_rate.table(rates, layers=3, workers=2).splitlines()
    assert table[2] == "| bare subprocess, one after the other | 6 | 4.0x |"
    assert table[3] == "| fresh `python -I -S`, 2 at a time | 11 | 2.0x |"
    assert table[4] == "| executor, 2 workers, 3 layers | 22 |  |"


def test_a_solution_that_fails_is_no_measurement():
    wrong = Case(0, "def double(n):\n    return n\n", ("assert double(3) == 6",))
    with pytest.raises(RuntimeError, match="1 of 1 solutions did not pass"):
        executor_rate.measure([wrong], workers=1, repeats=1)
