"""The report says what the records say."""

from sdpo.benchmark.results.load_runs import by_name, read_runs
from sdpo.benchmark.results.report import costs, pairs, write_report
from tests.helpers.written_runs import write_run


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


def test_costs_are_of_a_run_and_of_a_step(tmp_path):
    """Three steps of half a second each, and two: 1.25 s a run."""
    write_run(tmp_path, "one", 1, [1, 2, 3, 4])
    write_run(tmp_path, "one", 2, [1, 2, 3])
    (row,) = costs(by_name(read_runs(tmp_path))).rows
    assert row == ("one", "1", "0.50", "100", "100")


def test_one_configuration_has_no_pairs(tmp_path):
    write_run(tmp_path, "one", 1, [1, 2])
    assert pairs(by_name(read_runs(tmp_path))) is None
