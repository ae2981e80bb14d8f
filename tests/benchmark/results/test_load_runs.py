"""Runs are read back and put side by side: outcomes, pairs, columns."""

from typing import Any

import pytest

from sdpo.benchmark.results import findings
from sdpo.benchmark.results.load_runs import (
    ResultsError,
    band,
    by_name,
    csv_of,
    outcome,
    paired,
    read_runs,
    series,
)
from tests.helpers.written_runs import PROBLEMS, write_run


def test_outcomes_and_pairs(tmp_path):
    for seed in (1, 2):
        write_run(tmp_path, "one", seed, [10, 20, 20])
        write_run(tmp_path, "two", seed, [10, 50, 50])
    groups = by_name(read_runs(tmp_path))
    gain = outcome(groups["two"]).gain
    assert gain.estimate == pytest.approx(40 / 60)
    found = paired(groups["one"], groups["two"])
    assert found.verdict == "two"
    assert found.difference.estimate == pytest.approx(30 / 60)
    assert all(p < 1e-6 for p in found.p_values)
    assert paired(groups["two"], groups["one"]).verdict == "two"
    assert paired(groups["one"], groups["one"]).verdict == "cannot distinguish"
    rates = band([run.evals for run in groups["one"]], "pass_at_1")
    assert rates[1] == (1, 20 / 60, 20 / 60, 20 / 60)


@pytest.mark.parametrize("solved", [0, PROBLEMS])
def test_nothing_solved_and_all_solved_are_no_certainty(solved, tmp_path):
    for name in ("one", "two"):
        write_run(tmp_path, name, 1, [solved, solved])
    groups = by_name(read_runs(tmp_path))
    width = 1 - 0.025 ** (1 / PROBLEMS)
    gain = outcome(groups["one"]).gain
    assert (gain.low, gain.high) == pytest.approx((-width, width))
    last = outcome(groups["one"]).last
    assert last.high - last.low == pytest.approx(width)
    difference = paired(groups["one"], groups["two"]).difference
    assert (difference.low, difference.high) == pytest.approx((-width, width))
    said = findings.findings(groups)[0]
    assert "did not clearly change (+0.000 [-0.060, +0.060])" in said
    assert ("a gain below 0.060 cannot be told" in said) == (solved == 0)


def test_one_seed_gone_astray_makes_no_method_better(tmp_path):
    for seed, last in ((1, 40), (2, 41), (3, 40)):
        write_run(tmp_path, "one", seed, [10, last])
    for seed, last in ((1, 41), (2, 5), (3, 41)):
        write_run(tmp_path, "two", seed, [10, last])
    groups = by_name(read_runs(tmp_path))
    found = paired(groups["one"], groups["two"])
    assert found.difference.high < 0
    assert found.verdict == "cannot distinguish"


def test_the_folder_of_one_run_is_reported_too(tmp_path):
    write_run(tmp_path, "mine", 3, [10, 20])
    (run,) = read_runs(tmp_path / "mine" / "seed-3")
    assert (run.name, run.seed, run.last["pass_at_1"]) == ("sdpo", 3, 20 / PROBLEMS)


def test_runs_that_cannot_be_compared_are_refused(tmp_path):
    with pytest.raises(ResultsError, match="holds no run"):
        read_runs(tmp_path)
    write_run(tmp_path, "one", 1, [1, 2])
    write_run(tmp_path, "two", 1, [1, 2], sha="1" * 64)
    with pytest.raises(ResultsError, match="different problems"):
        read_runs(tmp_path)


def test_a_column_leaves_out_what_is_no_number():
    rows: list[Any] = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": "nan"}, {"step": 4}]
    assert series(rows, "loss") == {1: 0.5}


def test_a_band_has_the_steps_of_every_seed():
    seeds: list[Any] = [
        [{"step": 1, "x": 2}, {"step": 2, "x": 3}],
        [{"step": 1, "x": 6}, {"step": 3, "x": 0}],
    ]
    assert band(seeds, "x") == [(1, 4, 2, 6)]


def test_a_gain_is_the_difference_of_the_ends(tmp_path):
    """10, then 40 of 60 in one seed and 20 in the other: 10/60 to 30/60."""
    write_run(tmp_path, "one", 1, [10, 40])
    write_run(tmp_path, "one", 2, [10, 20])
    first, last, gain = outcome(by_name(read_runs(tmp_path))["one"])
    estimates = [interval.estimate for interval in (first, last, gain)]
    assert estimates == pytest.approx([1 / 6, 1 / 2, 1 / 3])


def test_a_csv_joins_the_records_of_a_step(tmp_path):
    write_run(tmp_path, "one", 1, [6, 12])
    head, start, step = csv_of(read_runs(tmp_path)).splitlines()
    names = head.split(",")
    assert dict(zip(names, start.split(","), strict=True))["eval/pass_at_1"] == "0.1"
    cells = dict(zip(names, step.split(","), strict=True))
    assert (cells["step"], cells["reward"], cells["seconds"]) == ("1", "0.5", "0.5")
    assert cells["eval/pass_at_1"] == "0.2"
