"""Problem sets: both published formats, splits, and clear errors."""

import hashlib
import json
import sys
from pathlib import Path

import pytest

from sdpo.benchmark.problems.dataset import DataError, load_file, load_hub
from sdpo.benchmark.scoring.check_references import check_references
from sdpo.benchmark.scoring.executor import Executor

_FULL = {
    "text": "Add one.",
    "code": "def f(x):\r\n    return x + ONE",
    "task_id": 601,
    "test_setup_code": "ONE = 1",
    "test_list": ["assert f(1) == 2"],
    "challenge_test_list": ["assert f(0) == 1"],
}
_SANITIZED = {
    "source_file": "file",
    "task_id": 11,
    "prompt": "Halve.",
    "code": "def h(x):\n    return x / 2",
    "test_imports": ["import math"],
    "test_list": ["assert math.isclose(h(1), 0.5)"],
}


def test_both_formats(tmp_path: Path) -> None:
    lines, array = tmp_path / "a.jsonl", tmp_path / "b.json"
    lines.write_text(json.dumps(_FULL) + "\n\n" + json.dumps(_SANITIZED) + "\n")
    array.write_text(json.dumps([_FULL, _SANITIZED]))
    for path in (lines, array):
        dataset = load_file(path)
        assert dataset.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        full, sanitized = dataset.problems
        assert (full.text, full.test_setup_code, full.split) == ("Add one.", "ONE = 1", "train")
        assert full.code == "def f(x):\n    return x + ONE"
        assert (sanitized.text, sanitized.test_imports) == ("Halve.", "import math")
        assert dataset.only("test").problems == (sanitized,)
        assert dataset.only("test").stamp["split"] == "test"


def test_reference_check_finds_a_wrong_reference(tmp_path: Path, executor: Executor) -> None:
    path = tmp_path / "a.jsonl"
    wrong = {**_SANITIZED, "task_id": 12, "code": "def h(x):\n    return x"}
    path.write_text("".join(json.dumps(p) + "\n" for p in (_FULL, _SANITIZED, wrong)))
    for reverse in (False, True):
        failures = check_references(executor, load_file(path), reverse=reverse)
        assert [failure.task_id for failure in failures] == [12]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no problems"),
        ("[]", "holds no problems"),
        ("{bad", "line 1"),
        ("[{bad", "neither JSON nor JSON lines"),
        ("[3]", "expected an object"),
        ('{"task_id": 1, "code": ""}', "test_list missing"),
        ('{"task_id": "x", "code": "", "test_list": []}', "problem 1"),
    ],
)
def test_malformed_files(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        load_file(path)


def test_missing_file_and_unknown_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        load_file(tmp_path / "none")
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(_FULL))
    with pytest.raises(DataError, match="no split 'dev'; there are prompt"):
        load_file(path).only("dev")
    with pytest.raises(DataError, match="holds no problem"):
        load_file(path).only("test")


def test_hub_needs_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="give --data FILE"):
        load_hub()
    with pytest.raises(DataError, match="use full or sanitized"):
        load_hub("tiny")


@pytest.mark.network
@pytest.mark.parametrize(("configuration", "size"), [("full", 974), ("sanitized", 427)])
def test_hub(configuration: str, size: int) -> None:
    assert len(load_hub(configuration).problems) == size


_SPLIT_SIZES = {
    "mbpp.jsonl": {"prompt": 10, "test": 500, "validation": 90, "train": 374},
    "sanitized-mbpp.json": {"prompt": 7, "test": 257, "validation": 43, "train": 120},
}


@pytest.mark.slow
def test_published_references_pass_three_times_in_both_orders(published: Path) -> None:
    dataset = load_file(published)
    for split, size in _SPLIT_SIZES[published.name].items():
        assert len(dataset.only(split).problems) == size
    with Executor(2) as executor:
        for repeat in range(3):
            for reverse in (False, True):
                failures = check_references(executor, dataset, reverse=reverse)
                assert failures == [], f"repeat {repeat}, reverse={reverse}"
