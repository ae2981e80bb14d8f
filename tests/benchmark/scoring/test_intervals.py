"""Statistics against enumeration of every possible outcome."""

import itertools
import math
import random

import pytest

from sdpo.benchmark.scoring.intervals import (
    bootstrap,
    compare,
    mcnemar,
    mean_pass_at_k,
    minimum_detectable_effect,
    pass_at_k,
    unseen_fraction,
    wilson,
)


@pytest.mark.parametrize("samples", range(1, 8))
def test_pass_at_k_is_the_fraction_of_subsets_with_a_pass(samples: int) -> None:
    for passed in range(samples + 1):
        outcomes = [True] * passed + [False] * (samples - passed)
        for k in range(1, samples + 1):
            subsets = list(itertools.combinations(outcomes, k))
            expected = sum(any(subset) for subset in subsets) / len(subsets)
            assert pass_at_k(samples, passed, k) == pytest.approx(expected, abs=1e-15)


def test_pass_at_1_is_the_plain_rate() -> None:
    assert pass_at_k(8, 2, 1) == 0.25
    assert mean_pass_at_k([(4, 1), (4, 3)], 1) == 0.5


@pytest.mark.parametrize("arguments", [(0, 0, 1), (3, 4, 1), (3, -1, 1), (3, 1, 0), (3, 1, 4)])
def test_pass_at_k_refuses_impossible_counts(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="needs 0 <= c <= n"):
        pass_at_k(*arguments)
    with pytest.raises(ValueError, match="no problems"):
        mean_pass_at_k([], 1)


@pytest.mark.parametrize(("first", "second"), list(itertools.product(range(7), range(7))))
def test_mcnemar_is_the_fraction_of_coin_sequences_as_extreme(first: int, second: int) -> None:
    total = first + second
    distance = abs(first - second)
    flips = itertools.product((1, -1), repeat=total)
    expected = sum(abs(sum(flip)) >= distance for flip in flips) / 2**total
    assert mcnemar(first, second) == pytest.approx(expected)


def test_wilson_solves_its_own_equation() -> None:
    interval = wilson(137, 257)
    z = 1.959963984540054
    for bound in (interval.low, interval.high):
        deviation = abs(interval.estimate - bound) / math.sqrt(bound * (1 - bound) / 257)
        assert deviation == pytest.approx(z)
    assert (wilson(0, 10).low, wilson(10, 10).high) == (0.0, 1.0)
    assert wilson(5, 10, 0.99).high > wilson(5, 10, 0.9).high


def test_wilson_covers_as_often_as_it_says() -> None:
    n, p = 60, 0.3
    covered = sum(
        math.comb(n, c) * p**c * (1 - p) ** (n - c)
        for c in range(n + 1)
        if wilson(c, n).low <= p <= wilson(c, n).high
    )
    assert covered == pytest.approx(0.95, abs=0.02)


def test_bootstrap_agrees_with_the_exact_distribution() -> None:
    values = [1.0, 0.0, 0.0, 1.0, 1.0]
    exact = sorted(sum(choice) / 5 for choice in itertools.product(values, repeat=5))
    interval = bootstrap(values, 0.8, limits=(0, 1), resamples=20_000)
    assert interval.estimate == 0.6
    assert interval.low == exact[int(0.1 * (len(exact) - 1))]
    assert interval.high == exact[math.ceil(0.9 * (len(exact) - 1))]
    again = (bootstrap(values, limits=(0, 1), seed=3) for _ in range(2))
    assert next(again) == next(again)


@pytest.mark.parametrize("problems", [1, 10, 180])
@pytest.mark.parametrize(("value", "limits"), [(0.0, (0, 1)), (1.0, (0, 1)), (0.0, (-1, 1))])
def test_equal_values_are_no_certainty(problems, value, limits) -> None:
    """The interval reaches as far as problems that 95 % of samples would have shown."""
    found = bootstrap([value] * problems, limits=limits)
    share = unseen_fraction(problems)
    assert (1 - share) ** problems == pytest.approx(0.025)
    assert found.estimate == value
    assert found.low == pytest.approx(value - share * (value - limits[0]))
    assert found.high == pytest.approx(value + share * (limits[1] - value))
    assert found.high - found.low >= share


def test_an_interval_of_equal_values_covers_as_often_as_it_says() -> None:
    """A share of the problems that the bound just leaves out is missed in one sample of 40."""
    problems, share = 30, unseen_fraction(30)
    generator = random.Random(0)
    draws = [sum(generator.random() < share for _ in range(problems)) for _ in range(20_000)]
    assert draws.count(0) / len(draws) == pytest.approx(0.025, abs=0.005)


def test_compare_counts_and_decides() -> None:
    first = [True] * 30 + [False] * 30
    second = [True] * 10 + [False] * 20 + [False] * 30
    result = compare(first, second)
    assert (result.only_first, result.only_second) == (20, 0)
    assert result.verdict == "first"
    assert compare(second, first).verdict == "second"
    assert result.difference == pytest.approx(-1 / 3)
    same = compare(first, first)
    assert (same.p_value, same.verdict) == (1.0, "cannot distinguish")
    assert compare([True, False], [False, True]).verdict == "cannot distinguish"


def test_minimum_detectable_effect_is_found_with_the_stated_power() -> None:
    problems, discordant = 257, 0.2
    effect = minimum_detectable_effect(problems, discordant)
    generator = random.Random(0)
    win, lose = (discordant + effect) / 2, (discordant - effect) / 2
    found = 0
    for _ in range(2000):
        draws = generator.choices((1, -1, 0), (win, lose, 1 - discordant), k=problems)
        found += mcnemar(draws.count(1), draws.count(-1)) < 0.05
    # The exact test is a little less powerful than the approximation promises.
    assert 0.7 < found / 2000 < 0.85


def test_minimum_detectable_effect_shrinks_with_problems_and_may_not_exist() -> None:
    effects = [minimum_detectable_effect(n, 0.2) for n in (100, 257, 974)]
    assert effects == sorted(effects, reverse=True)
    assert minimum_detectable_effect(10, 0.1) == math.inf
    assert minimum_detectable_effect(10, 0.0) == math.inf


@pytest.mark.parametrize(
    "call",
    [
        lambda: wilson(1, 0),
        lambda: wilson(3, 2),
        lambda: wilson(1, 2, 1.0),
        lambda: bootstrap([], limits=(0, 1)),
        lambda: bootstrap([2.0], limits=(0, 1)),
        lambda: unseen_fraction(0),
        lambda: mcnemar(-1, 2),
        lambda: compare([True], []),
        lambda: compare([], []),
        lambda: minimum_detectable_effect(0, 0.1),
        lambda: minimum_detectable_effect(5, 1.1),
    ],
)
def test_impossible_arguments_are_refused(call) -> None:
    with pytest.raises(ValueError, match=r"needs|must"):
        call()
