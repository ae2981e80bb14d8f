"""`sdpo mbpp exec` and `check`: one line per case in order, whatever happens."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sdpo.cli import main

_TESTS = ["assert f(1) == 1", "assert f(2) == 2"]
_FIELDS = {"id", "status", "passed", "total", "feedback", "seconds", "isolation"}


def invoke(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Run the command line in this process; returns exit code and standard output."""
    with pytest.raises(SystemExit) as info:
        main([str(argument) for argument in arguments])
    code = info.value.code
    return (code if isinstance(code, int) else 0), capsys.readouterr().out


def write_cases(path: Path, cases: list[Any]) -> Path:
    lines = [case if isinstance(case, bytes) else json.dumps(case).encode() for case in cases]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def case(identity: object, completion: object = "def f(x):\n    return x", **more: object) -> dict:
    return {"id": identity, "completion": completion, "test_list": _TESTS, **more}


def results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_case_is_answered_in_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = [
        case("slow", "import time\ndef f(x):\n    time.sleep(0.2)\n    return x"),
        case(2, prompt="Do.", unknown={"a": [1]}),
        b"{not json",
        case({"a": 1}, "def f(x):\n    return 1"),
        b"\xff\xfe",
        {"id": "no completion", "test_list": _TESTS},
        case("null completion", None),
        case("loop", "def f(x):\n    while True:\n        pass"),
        {"id": "no tests", "completion": "x = 1"},
        case("empty tests") | {"test_list": []},
        case("odd tests") | {"test_list": [1]},
        case("text tests") | {"test_list": "assert f(1) == 1"},
        case("", ""),
        b"[]",
        b"null",
        b"[" * 100_000,
        b'{"id": NaN}',
        case(2, "\ufeffdef f(x):\r\n\treturn x\r\n"),
        case("unparsable") | {"test_list": ["assert f(1 == 1", "assert f(2) == 2"]},
        case("surrogate", "def f(x):\n    return '\ud800'"),
        case(
            "imports", "def f(x):\n    return x", test_imports=["import math"], test_setup_code=None
        ),
        case("bad imports", test_imports=["import no_such_module"]),
        b"",
        case("last"),
    ]
    out = tmp_path / "out.jsonl"
    code, text = invoke(
        capsys,
        "mbpp",
        "exec",
        write_cases(tmp_path / "cases", cases),
        "--out",
        out,
        "--timeout",
        "2",
        "--workers",
        "2",
    )
    assert code == 0, text
    found = results(out)
    assert [(r["id"], r["status"], r["passed"], r["total"]) for r in found] == [
        ("slow", "pass", 2, 2),
        (2, "pass", 2, 2),
        (None, "error", 0, 0),
        ({"a": 1}, "fail", 1, 2),
        (None, "error", 0, 0),
        ("no completion", "error", 0, 0),
        ("null completion", "error", 0, 0),
        ("loop", "timeout", 0, 2),
        ("no tests", "error", 0, 0),
        ("empty tests", "error", 0, 0),
        ("odd tests", "error", 0, 0),
        ("text tests", "error", 0, 0),
        ("", "error", 0, 2),
        (None, "error", 0, 0),
        (None, "error", 0, 0),
        (None, "error", 0, 0),
        (None, "error", 0, 0),
        (2, "pass", 2, 2),
        ("unparsable", "fail", 1, 2),
        ("surrogate", "error", 0, 2),
        ("imports", "pass", 2, 2),
        ("bad imports", "error", 0, 2),
        ("last", "pass", 2, 2),
    ]
    assert all(set(r) >= _FIELDS for r in found)
    assert found[2]["feedback"].startswith("line 3: ")
    assert "no_such_module" in found[-2]["feedback"]
    assert text.startswith("DONE 23 cases: 15 error")


def test_an_unfinished_output_is_continued(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = write_cases(tmp_path / "cases", [case(i) for i in range(6)])
    out = tmp_path / "out.jsonl"
    arguments = ("mbpp", "exec", cases, "--out", out, "--workers", 1)
    assert invoke(capsys, *arguments)[0] == 0
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    marked = lines[0].replace(b'"passed": 2', b'"passed": 7')
    out.write_bytes(marked + lines[1] + lines[2] + lines[3][:20])
    code, text = invoke(capsys, *arguments)
    assert (code, text) == (0, "DONE 6 cases (3 were there before): 3 pass\n")
    again = results(out)
    assert [r["id"] for r in again] == list(range(6))
    assert again[0]["passed"] == 7
    assert invoke(capsys, *arguments) == (0, "DONE 6 cases (6 were there before): nothing new\n")


def test_an_output_of_other_cases_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    first = write_cases(tmp_path / "a", [case(1)])
    second = write_cases(tmp_path / "b", [case(1, "x = 1")])
    invoke(capsys, "mbpp", "exec", first, "--out", out, "--workers", 1)
    before = out.read_bytes()
    code, text = invoke(capsys, "mbpp", "exec", second, "--out", out)
    assert code == 2
    assert text.startswith("ERROR")
    assert "--overwrite" in text
    assert out.read_bytes() == before
    assert invoke(capsys, "mbpp", "exec", second, "--out", out, "--overwrite")[0] == 0
    assert results(out)[0]["status"] == "error"


@pytest.mark.parametrize(
    ("cases", "out", "message"),
    [
        ("missing", "out", "cannot read the cases"),
        (".", "out", "cannot read the cases"),
        ("cases", "no/such/folder/out", "cannot write"),
        ("cases", ".", "cannot"),
    ],
)
def test_what_cannot_be_read_or_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cases: str, out: str, message: str
) -> None:
    write_cases(tmp_path / "cases", [case(1)])
    code, text = invoke(capsys, "mbpp", "exec", tmp_path / cases, "--out", tmp_path / out)
    assert code == 2
    assert text.startswith("ERROR")
    assert message in text


def test_a_full_disk_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full")
    cases = write_cases(tmp_path / "cases", [case(1)])
    code, text = invoke(capsys, "mbpp", "exec", cases, "--out", "/dev/full", "--workers", 1)
    assert code == 2
    assert text.startswith("ERROR cannot write")


def test_no_cases(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cases").write_text("\n\n")
    arguments = ("mbpp", "exec", tmp_path / "cases", "--out", tmp_path / "out", "--workers", 1)
    assert invoke(capsys, *arguments) == (0, "DONE 0 cases: nothing new\n")
    assert (tmp_path / "out").read_text() == ""


def test_check_reports_and_judges(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = {"task_id": 11, "code": "def f(x):\n    return x", "test_list": _TESTS}
    bad = {**good, "task_id": 12, "code": "def f(x):\n    return 1"}
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps(good) + "\n")
    code, text = invoke(capsys, "mbpp", "check", "--data", data, "--workers", 1)
    assert code == 0
    assert text.startswith("PASS references=1/1 data=data.jsonl split=all sha256=")
    data.write_text(json.dumps(good) + "\n" + json.dumps(bad) + "\n")
    code, text = invoke(capsys, "mbpp", "check", "--data", data, "--workers", 1, "--reverse")
    assert code == 1
    assert text.startswith("FAIL references=1/2")
    assert "task 12: fail" in text
    code, text = invoke(capsys, "mbpp", "check", "--data", tmp_path / "none")
    assert (code, text.startswith("ERROR cannot read")) == (2, True)


def test_scoring_needs_no_torch() -> None:
    program = (
        "import sys\nfrom sdpo.cli import main\ntry:\n    main(['mbpp', 'exec', '--help'])\n"
        "except SystemExit:\n    pass\n"
        "import sdpo.benchmark.scoring.score_file, sdpo.benchmark.scoring.reward\n"
        "assert 'torch' not in sys.modules and 'datasets' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
