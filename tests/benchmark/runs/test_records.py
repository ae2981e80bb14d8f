"""Records survive a kill at any place of a file."""

from typing import Any

import pytest

from sdpo.benchmark.runs.records import BusyError, Records, locked, read_json, write_json


def test_rows_come_back_and_odd_numbers_are_texts(tmp_path):
    records = Records(tmp_path)
    row: Any = {"step": 1, "loss": float("nan"), "x": {"y": [float("inf")]}}
    records.steps.append(row)
    assert records.steps.read() == [{"step": 1, "loss": "nan", "x": {"y": ["inf"]}}]
    assert records.evals.read() == []


def test_a_line_cut_anywhere_is_dropped(tmp_path):
    records = Records(tmp_path)
    for step in (1, 2, 3):
        row: Any = {"step": step, "text": "ü" * step}
        records.steps.append(row)
    whole = records.steps.path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    for size in range(len(whole) + 1):
        records.steps.path.write_bytes(whole[:size])
        complete = sum(end <= size for end in ends)
        assert [row["step"] for row in records.steps.read()] == [1, 2, 3][:complete]
        records.truncate(2)
        kept = ends[min(complete, 2) - 1] if complete else 0
        assert records.steps.path.read_bytes() == whole[:kept]


def test_one_run_at_a_time(tmp_path):
    with locked(tmp_path), pytest.raises(BusyError, match="another run"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_json_files_are_replaced_whole(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    write_json(tmp_path / "a.json", {"x": float("nan")})
    assert read_json(tmp_path / "a.json") == {"x": "nan"}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
