"""The sweep: as many trials for each method, and the best by validation alone."""

from typing import Any

import pytest

from sdpo.benchmark.runs import sweep
from sdpo.benchmark.runs.records import Records, write_json
from sdpo.benchmark.runs.settings import SettingsError

# pass@1 at the end and reward that pretended runs reach.
REACHED = {"learning_rate=0.0001": (0.2, 0.3), "learning_rate=0.0002": (0.2, 0.4)}


def pretend(jobs):
    for job in jobs:
        last, reward = REACHED.get(job.folder.parents[1].name, (0.1, 0.9))
        records: Any = Records(job.folder)
        job.folder.mkdir(parents=True)
        for step, rate in ((0, 0.1), (job.steps, last)):
            records.evals.append({"step": step, "pass_at_1": rate, "problems": 60})
        records.steps.append({"step": job.steps, "reward": reward})
        write_json(job.folder / "summary.json", {"training_seconds": 1.0})


def test_variants_are_tried_at_the_best_rate_with_equal_budgets(tmp_path):
    results = sweep.sweep(list(sweep.VARIANTS), [11], tmp_path, [], pretend)
    trials = [[r for r in results if r.method == method] for method in sweep.VARIANTS]
    assert len(set(map(len, trials))) == 1
    assert len({(r.steps, r.seeds, r.problems) for r in results}) == 1
    for tried in trials:
        assert {r.changes["train.learning_rate"] for r in tried[len(sweep.RATES) :]} == {2e-4}
    text = sweep.table(results)
    assert text.count("**learning_rate=0.0002**") == len(sweep.VARIANTS)
    assert text.count("**") == 2 * len(sweep.VARIANTS)


def test_test_problems_are_not_touched(tmp_path):
    commands = []

    def run(jobs):
        commands.extend(jobs)
        pretend(jobs)

    sweep.sweep(["sdpo"], [11], tmp_path, [], run)
    assert commands
    assert all("--set=data.eval_split=validation" in job.command for job in commands)


def test_settings_are_checked_before_anything_runs(tmp_path):
    with pytest.raises(SettingsError, match="evel"):
        sweep.sweep(["sdpo"], [11], tmp_path, ["evel.every=3"], pretend)
    assert not list(tmp_path.iterdir())
