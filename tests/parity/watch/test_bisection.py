"""Halving finds what moved in as many audits as the list has doublings."""

import itertools
import math
import random

import pytest

from sdpo.parity.watch.bisection import bisect


def halved(values, unjudged=()):
    """Which numbers are audited where releases show these values."""
    order = []

    def audited(number):
        order.append(number)
        return None if number in unjudged else (values[number],)

    results = bisect(len(values), audited, lambda a, b: a != b)
    assert sorted(order) == sorted(results)
    assert len(order) == len(set(order))
    return order, results


@pytest.mark.parametrize("count", [2, 3, 16, 100])
def test_one_move_is_found_in_two_and_log2_audits(count):
    for moved in range(1, count):
        order, results = halved([number >= moved for number in range(count)])
        assert {moved - 1, moved} <= results.keys()
        assert len(order) <= 2 + math.ceil(math.log2(count))


def test_where_the_ends_agree_nothing_is_audited_between_them():
    assert halved([1] * 50)[0] == [0, 49]


def test_of_one_release_or_none_no_more_is_audited():
    assert halved([1])[0] == [0]
    assert halved([])[0] == []


@pytest.mark.parametrize("seed", range(30))
def test_every_move_that_stays_is_found_past_releases_that_cannot_be_judged(seed):
    chance = random.Random(seed)
    count = chance.randint(2, 40)
    moves = sorted(chance.sample(range(1, count), min(3, count - 1)))
    values = [sum(number >= move for move in moves) for number in range(count)]
    unjudged = {n for n in range(count) if chance.random() < 0.2}
    _, results = halved(values, unjudged)
    judged = [n for n in range(count) if n not in unjudged]
    for before, after in itertools.pairwise(judged):
        if values[before] != values[after]:
            assert {before, after} <= results.keys()


def test_a_list_without_any_release_that_can_be_judged_ends():
    order, results = halved([0] * 6, unjudged=range(6))
    assert sorted(order) == list(range(6))
    assert set(results.values()) == {None}
