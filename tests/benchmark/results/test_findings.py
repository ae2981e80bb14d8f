"""Sentences follow from the figures."""

import pytest

from sdpo.benchmark.results import findings
from sdpo.benchmark.results.load_runs import by_name, read_runs
from sdpo.benchmark.runs.records import Records
from sdpo.benchmark.scoring.intervals import Interval
from tests.helpers.written_runs import write_run


@pytest.mark.parametrize(("last", "clear"), [(0.6, 1), (0.2, 0)])
def test_the_training_curve_and_what_explains_it(tmp_path, last, clear):
    write_run(tmp_path, "one", 1, [10, 20])
    records = Records(tmp_path / "one" / "seed-1")
    records.steps.path.unlink()
    for step in range(1, 31):
        reward = (0.2 if step <= 10 else last) + 0.01 * (step % 5)
        row = {"teacher/ahead_on_failed": -3.0, findings.COVERAGE: 0.5}
        records.steps.append({"step": step, "reward": reward, **row})
    (said,) = findings.findings(by_name(read_runs(tmp_path)))
    assert f"0.22 to {last + 0.02:.2f}; the intervals lie apart, upwards, in {clear} of 1" in said
    assert "share of attempts with a teacher 0.5 to 0.5" in said
    assert "teacher's log-prob gain on failed attempts -3 to -3" in said


def test_an_interval_is_shown_with_three_digits_and_signs_where_asked_for():
    interval = Interval(0.1234, -0.1, 0.25)
    assert findings.shown(interval) == "0.123 [-0.100, 0.250]"
    assert findings.shown(interval, signed=True) == "+0.123 [-0.100, +0.250]"


def test_the_best_on_the_way_is_each_seeds_own(tmp_path):
    """30 of 60 in one seed and 18 in the other: (0.5 + 0.3) / 2."""
    write_run(tmp_path, "one", 1, [6, 30, 6])
    write_run(tmp_path, "one", 2, [18, 6, 6])
    assert findings.best_on_the_way(read_runs(tmp_path)) == pytest.approx(0.4)


def test_each_pair_is_told_apart_or_not(tmp_path):
    for name, last in (("a", 10), ("b", 50), ("c", 10)):
        write_run(tmp_path, name, 1, [10, last])
    assert findings.comparisons(by_name(read_runs(tmp_path))) == [
        "a against b: b ended higher.",
        "a against c: the runs cannot be told apart.",
        "b against c: b ended higher.",
    ]
