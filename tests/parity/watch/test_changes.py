"""A deviation is introduced, changed or removed at the release that did it."""

import pytest

from sdpo.parity.truth.tolerances import TOLERANCES
from sdpo.parity.watch.changes import changes
from sdpo.parity.watch.release_audit import line_of, unaudited
from sdpo.parity.watch.upstreams import Upstream
from tests.helpers.stand_in_releases import run_that_shows

UPSTREAM = Upstream("mine", "p")
CASES = ("T01", "T02", "T03")


def moved(*releases):
    """The changes over releases 1, 2, …: |Δ| at `aggregate` by case, or why there is none."""
    lines = [
        unaudited(UPSTREAM, str(number), "", "not installed", shown)
        if isinstance(shown, str)
        else line_of(audit(shown), UPSTREAM, str(number), "", {})
        for number, shown in enumerate(releases, start=1)
    ]
    return changes(lines, [])


def audit(shown):
    """A report; a case without a size was not compared."""
    cases = [case for case in CASES if case not in shown]
    sizes = {(case, "aggregate"): size for case, size in shown.items() if size is not None}
    return run_that_shows(sizes, holds=tuple(cases))


def told(found):
    return [(c.kind, c.release, c.after, c.is_adjacent, dict(c.before), dict(c.now)) for c in found]


def test_a_deviation_that_a_release_brings_is_introduced_there():
    assert told(moved({}, {}, {"T01": 0.5}, {"T01": 0.5})) == [
        ("introduced", "3", "2", True, {}, {"T01": 0.5})
    ]


def test_one_that_a_release_repairs_is_removed_there():
    assert told(moved({"T01": 0.5}, {})) == [("removed", "2", "1", True, {"T01": 0.5}, {})]


def test_another_case_that_shows_it_is_a_change_of_that_case():
    assert told(moved({"T01": 0.5}, {"T01": 0.5, "T02": 0.25})) == [
        ("changed", "2", "1", True, {}, {"T02": 0.25})
    ]


def test_what_stays_is_no_change():
    assert moved({"T01": 0.5}, {"T01": 0.5}, {"T01": 0.5}) == []


def test_what_comes_and_goes_is_told_twice():
    kinds = [(c.kind, c.release) for c in moved({}, {"T01": 1.0}, {}, {"T01": 1.0})]
    assert kinds == [("introduced", "2"), ("removed", "3"), ("introduced", "4")]


@pytest.mark.parametrize(("factor", "count"), [(0.9, 0), (1.1, 1)])
def test_a_size_that_moves_by_more_than_rounding_is_a_change(factor, count):
    grown = 0.5 / (1 - factor * TOLERANCES.release_drift_share)
    assert len(moved({"T01": 0.5}, {"T01": grown})) == count


@pytest.mark.parametrize("size", [float("nan"), float("inf")])
def test_sizes_that_are_not_finite_are_compared_too(size):
    assert moved({"T01": size}, {"T01": size}) == []
    assert [c.kind for c in moved({"T01": size}, {"T01": 0.5})] == ["changed"]


def test_a_release_that_cannot_be_judged_leaves_two_that_it_may_be():
    (change,) = moved({}, "does not install", {"T01": 0.5})
    assert (change.release, change.after, change.is_adjacent) == ("3", "1", False)


def test_a_case_that_a_release_did_not_run_keeps_what_is_known_of_it():
    lines = [
        line_of(run_that_shows({("T01", "aggregate"): 0.5}, holds=("T02",)), UPSTREAM, "1", "", {}),
        line_of(run_that_shows({}, holds=("T02",)), UPSTREAM, "2", "", {}),
        line_of(run_that_shows({("T01", "aggregate"): 0.9}, holds=("T02",)), UPSTREAM, "3", "", {}),
    ]
    assert told(changes(lines, [])) == [("changed", "3", "1", False, {"T01": 0.5}, {"T01": 0.9})]
    assert changes(lines[:2], []) == []


def test_a_case_that_is_judged_for_the_first_time_is_no_change():
    lines = [
        line_of(run_that_shows({}, holds=("T02",)), UPSTREAM, "1", "", {}),
        line_of(run_that_shows({("T01", "aggregate"): 0.5}, holds=("T02",)), UPSTREAM, "2", "", {}),
    ]
    assert changes(lines, []) == []


def test_a_release_whose_audit_failed_tells_nothing():
    lines = [
        line_of(run_that_shows({}, holds=CASES), UPSTREAM, "1", "", {}),
        line_of(run_that_shows({}, holds=("T01",), fails=("T05",)), UPSTREAM, "2", "", {}),
    ]
    assert changes(lines, []) == []
