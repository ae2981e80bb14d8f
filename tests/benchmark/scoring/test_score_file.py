"""One line per case, in order, and an interrupted run goes on where it stopped."""

import json
from pathlib import Path

import pytest

from sdpo.benchmark.scoring.executor import Executor
from sdpo.benchmark.scoring.score_file import (
    RunError,
    count_cases,
    finished_lines,
    open_output,
    read_cases,
    run,
)

_CASE = {"completion": "def f():\n    return 1", "test_list": ["assert f() == 1"]}


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    """Three cases and a line that is none, with a blank line between."""
    path = tmp_path / "cases.jsonl"
    lines = [json.dumps({**_CASE, "id": number}) for number in (1, 2)]
    path.write_text("\n".join([*lines, "", '{"id": 3}', json.dumps({**_CASE, "id": 4})]))
    return path


def test_lines_that_are_no_cases_keep_their_place(cases: Path) -> None:
    lines = list(read_cases(cases))
    assert [(line.number, line.id) for line in lines] == [(1, 1), (2, 2), (4, 3), (5, 4)]
    assert lines[2].problem == 'line 4: "completion" is missing'
    assert [line.case is None for line in lines] == [False, False, True, False]
    assert count_cases(cases) == 4


@pytest.mark.parametrize("text", ["{", "[NaN]", "\xff", "[" * 5000])
def test_a_line_that_is_not_json_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_bytes(text.encode("latin-1"))
    (line,) = read_cases(path)
    assert line.problem.startswith("line 1: not valid JSON in UTF-8")
    assert len(line.problem) < 400


def test_results_are_written_in_order_and_continued(
    executor: Executor, cases: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    with open_output(out, 0) as output:
        counts = run(executor, read_cases(cases), output)
    assert counts == {"pass": 3, "error": 1}
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(record["id"], record["status"]) for record in records] == [
        (1, "pass"),
        (2, "pass"),
        (3, "error"),
        (4, "pass"),
    ]
    whole = out.read_bytes()
    first_two = sum(len(line) for line in whole.splitlines(keepends=True)[:2])
    out.write_bytes(whole[: first_two + 9])
    assert finished_lines(out, cases) == (2, first_two)
    with open_output(out, first_two) as output:
        run(executor, iter(list(read_cases(cases))[2:]), output)
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == [1, 2, 3, 4]


def test_results_of_other_cases_are_not_continued(cases: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert finished_lines(out, cases) == (0, 0)
    out.write_text(json.dumps({"case_sha256": "of another"}) + "\n")
    with pytest.raises(RunError, match="holds results of other cases"):
        finished_lines(out, cases)


def test_what_cannot_be_read_or_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot read the cases"):
        count_cases(tmp_path / "missing")
    with pytest.raises(RunError, match="cannot write"):
        open_output(tmp_path / "missing" / "out", 0)
