"""Prompts come from problems, and the seed alone decides their order."""

import pytest

from sdpo.benchmark.problems.dataset import DataError, Problem
from sdpo.benchmark.problems.prompts import DataSettings, load_data, messages, training_rows

PROBLEMS = [Problem(601 + i, f"Task {i}.", "", (f"assert f({i}) == {i}",)) for i in range(3)]


def test_a_prompt_is_filled_in():
    data = DataSettings(system="Be brief.", prompt="{text}\nIt must pass:\n{tests}")
    assert messages(PROBLEMS[1], data) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Task 1.\nIt must pass:\nassert f(1) == 1"},
    ]
    assert messages(PROBLEMS[0], DataSettings()) == [{"role": "user", "content": "Task 0."}]


def test_braces_of_a_task_are_not_filled_in():
    problem = Problem(1, "Return {tests} as it is.", "", ("assert f() == 1",))
    (message,) = messages(problem, DataSettings())
    assert message["content"] == "Return {tests} as it is."


def test_each_pass_has_every_problem_once():
    rows = training_rows(PROBLEMS, DataSettings(), 8, seed=1)
    ids = [row["task_id"] for row in rows]
    assert [sorted(ids[start : start + 3]) for start in (0, 3)] == [[601, 602, 603]] * 2
    assert len(rows) == 8
    assert rows[0]["test_list"] == [f"assert f({ids[0] - 601}) == {ids[0] - 601}"]


def test_the_seed_decides_the_order():
    orders = [
        [row["task_id"] for row in training_rows(PROBLEMS, DataSettings(), 30, seed=seed)]
        for seed in (1, 1, 2)
    ]
    assert orders[0] == orders[1] != orders[2]


def test_a_problem_without_a_test_is_refused(tmp_path):
    file = tmp_path / "bare.jsonl"
    file.write_text('{"task_id": 601, "text": "Do it.", "code": "x = 1", "test_list": []}\n')
    with pytest.raises(DataError, match=r"problem 601 has no test \(1 such\)"):
        load_data(str(file))
