"""pass@1 is the mean over problems of the fraction of their completions that pass."""

import pytest

from sdpo.benchmark.problems.dataset import Problem
from sdpo.benchmark.scoring.executor import Executor
from sdpo.benchmark.scoring.pass_at_1 import score, summarize

_PROBLEMS = [Problem(task, "", "", ("assert f(1) == 2", "assert f(2) == 3")) for task in (7, 8)]


def scored(task: int, *statuses: str) -> list:
    return [
        {
            "task_id": task,
            "status": status,
            "passed": 0,
            "total": 2,
            "feedback": "",
            "completion": "",
        }
        for status in statuses
    ]


def test_each_completion_gets_its_result(executor: Executor) -> None:
    texts = ["def f(x):\n    return x + 1", "def f(x):\n    return 2"]
    first, second = score(executor, _PROBLEMS, texts)
    assert (first["task_id"], first["status"], first["passed"]) == (7, "pass", 2)
    assert (second["task_id"], second["status"], second["passed"]) == (8, "fail", 1)
    assert second["completion"] == texts[1]


def test_one_completion_each_gives_a_proportion() -> None:
    summary = summarize(scored(7, "pass") + scored(8, "timeout"), _PROBLEMS)
    assert (summary["pass_at_1"], summary["problems"], summary["samples"]) == (0.5, 2, 1)
    assert summary["passes"] == {"7": 1, "8": 0}
    # Wilson's interval of 1 of 2: (1/2 + z²/4 ± z √(1/8 + z²/16)) / (1 + z²/2), z = 1.96.
    assert summary["low"] == pytest.approx(0.0945, abs=1e-4)
    assert summary["high"] == pytest.approx(0.9055, abs=1e-4)


def test_several_completions_are_averaged_within_a_problem_first() -> None:
    results = scored(7, "pass", "pass", "fail", "fail") + scored(8, "pass", "pass", "pass", "pass")
    summary = summarize(results, _PROBLEMS)
    assert (summary["pass_at_1"], summary["samples"]) == (0.75, 4)
    assert summary["passes"] == {"7": 2, "8": 4}
    assert (summary["low"], summary["high"]) == (0.5, 1.0)
