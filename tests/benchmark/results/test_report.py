"""The report says what the records say: outcomes, pairs, collapse, parity."""

from typing import Any

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.lines import Line2D

from sdpo.benchmark.results import findings
from sdpo.benchmark.results.figures import draw_pass, whole_decades
from sdpo.benchmark.results.load_runs import (
    ResultsError,
    band,
    by_name,
    interval_at,
    outcome,
    paired,
    read_runs,
)
from sdpo.benchmark.results.report import write_report
from sdpo.benchmark.runs.records import Records, write_json

PROBLEMS = 60


def evaluation(step, passed):
    passes = {str(11 + i): int(i < passed) for i in range(PROBLEMS)}
    rate = passed / PROBLEMS
    row = {"step": step, "pass_at_1": rate, "low": rate - 0.1, "high": rate + 0.1}
    return {**row, "problems": PROBLEMS, "samples": 1, "passes": passes}


def write_run(folder, name, seed, passed, *, sha="0" * 64, audited=False):
    place = folder / name / f"seed-{seed}"
    place.mkdir(parents=True)
    settings = {"method": "sdpo", "seed": seed, "threads": 1, "model": {"name": "embedded"}}
    environment = {"packages": {"torch": "2"}, "git_commit": None, "cpu_capability": "X"}
    facts = {"data": {"data_sha256": sha, "origin": "o"}, "isolation": ["seccomp"]}
    write_json(place / "run.json", {"settings": settings, "environment": environment, **facts})
    records: Any = Records(place)
    for step, count in enumerate(passed):
        records.evals.append(evaluation(step, count))
    for step in range(1, len(passed)):
        records.steps.append({"step": step, "reward": 0.5, "num_tokens": 100.0, "grad_norm": 1})
        records.cost.append({"step": step, "seconds": 0.5, "peak_memory_mib": 100.0})
        if audited:
            row = {"parity/first_moved": 0 if step > 1 else 13, "parity/inconclusive": step > 1}
            for what in ("loss", "gradient"):
                row |= {f"parity/{what}_relative": 1e-7 * step, f"parity/{what}_budget": 1e-5}
            records.parity.append({"step": step, **row})
    sample = {"step": 1, "completion": "<b>x</b>", "reward": 0.0, "feedback": None}
    records.samples.append({**sample, "teacher_prompt": "p", "help": "none"})


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


def test_bars_are_intervals_of_the_lines_that_they_stand_behind(tmp_path):
    """Also of a seed that is ahead of another: lines end where every seed has been."""
    write_run(tmp_path, "one", 1, [10, 20, 50])
    write_run(tmp_path, "one", 2, [10, 40])
    groups = by_name(read_runs(tmp_path))
    axes = draw_pass(groups, "label").axes[0]
    line, (bar,) = axes.get_lines()[0], axes.containers
    assert isinstance(bar, ErrorbarContainer)
    marker, _, (stick,) = bar.lines
    assert isinstance(marker, Line2D)
    centre = float(np.asarray(marker.get_ydata())[0])
    assert centre == pytest.approx(float(np.asarray(line.get_ydata())[-1]))
    assert centre == pytest.approx(30 / PROBLEMS)
    low, high = np.asarray(stick.get_segments()[0])[:, 1]
    expected = interval_at(groups["one"], 1)
    assert (low, high) == pytest.approx((expected.low, expected.high))
    assert low < centre < high


def test_one_seed_gone_astray_makes_no_method_better(tmp_path):
    for seed, last in ((1, 40), (2, 41), (3, 40)):
        write_run(tmp_path, "one", seed, [10, last])
    for seed, last in ((1, 41), (2, 5), (3, 41)):
        write_run(tmp_path, "two", seed, [10, last])
    groups = by_name(read_runs(tmp_path))
    found = paired(groups["one"], groups["two"])
    assert found.difference.high < 0
    assert found.verdict == "cannot distinguish"


def test_a_report_is_written_whole(tmp_path):
    write_run(tmp_path / "runs", "rises", 1, [10, 30, 50], audited=True)
    write_run(tmp_path / "runs", "breaks", 1, [10, 50, 5])
    headline = write_report(tmp_path / "runs", tmp_path / "out", "Test")
    assert "rises +0.667" in headline
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "rises: pass@1 rose" in text
    assert "It ended 0.75 below its own best" in text
    assert "breaks against rises: rises ended higher" in text
    assert "| rises seed 1 | 0 of 2, 1 inconclusive |" in text
    assert text.count("is unfinished") == 2
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;x&lt;/b&gt;" in page
    assert "http" not in page.replace("http-equiv", "")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    pictures = {"pass_at_1.png", "training.png", "loss_difference.png"}
    assert names == pictures | {"report.md", "report.html", "steps.csv"}
    assert (tmp_path / "out" / "steps.csv").read_text().startswith("name,seed,step,")


def test_the_folder_of_one_run_is_reported_too(tmp_path):
    write_run(tmp_path, "mine", 3, [10, 20])
    (run,) = read_runs(tmp_path / "mine" / "seed-3")
    assert (run.name, run.seed, run.last["pass_at_1"]) == ("sdpo", 3, 20 / PROBLEMS)


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


def test_runs_that_cannot_be_compared_are_refused(tmp_path):
    with pytest.raises(ResultsError, match="holds no run"):
        read_runs(tmp_path)
    write_run(tmp_path, "one", 1, [1, 2])
    write_run(tmp_path, "two", 1, [1, 2], sha="1" * 64)
    with pytest.raises(ResultsError, match="different problems"):
        read_runs(tmp_path)


def test_a_log_axis_within_one_decade_still_has_two_labels():
    assert whole_decades(2e-5, 7e-5) == pytest.approx((1e-5, 1e-4))
    assert whole_decades(3e-7, 2e-4) == pytest.approx((1e-7, 1e-3))
