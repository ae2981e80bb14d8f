"""`sdpo audit` as a user runs it: first line, exit code, files, one JSON document."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sdpo.parity.adapters.load import BUILT_IN, TRAINERS

HERE = Path(__file__).parent


def sdpo(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sdpo", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_candidate_run_writes_reports_and_keeps_its_noise_out(tmp_path):
    candidate = f"{HERE / 'candidates.py'}:correct"
    done = sdpo("audit", candidate, "--json", "--stages", "aggregate,gradient", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["schema_version"] == 1
    (run,) = document["runs"]
    assert (run["candidate"], run["verdict"], run["exit_code"]) == (candidate, "PASS", 0)
    (folder,) = (tmp_path / "reports" / "audit").iterdir()
    written = json.loads((folder / "report.json").read_text())
    assert written["runs"] == [run]
    assert "a candidate may print" in (folder / "candidate.log").read_text()
    for name in ("report.md", "report.html"):
        assert "PASS" in (folder / name).read_text(encoding="utf-8")


def test_worst_exit_code_of_several_candidates(tmp_path):
    names = [f"{HERE / 'candidates.py'}:number", "nothing.py:f"]
    done = sdpo("audit", *names, "--quiet", cwd=tmp_path)
    lines = done.stdout.strip().splitlines()
    assert done.returncode == 2
    assert len(lines) == 2
    assert all(line.startswith("ERROR candidate=") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["audit", "--stages", "tial"], "unknown stages ['tial']"),
        (["audit", "--nonsense"], "--nonsense"),
        (["nonsense"], "nonsense"),
    ],
)
def test_wrong_usage_is_one_error_line_and_exit_code_two(arguments, words, tmp_path):
    done = sdpo(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout.startswith("ERROR ")
    assert words in done.stdout.splitlines()[0]
    assert "Traceback" not in done.stdout + done.stderr


def test_unwritable_output_folder(tmp_path):
    (tmp_path / "taken").write_text("a file")
    done = sdpo("audit", "--out", "taken", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout.startswith("ERROR cannot write to taken")


def test_damaged_goldens_end_with_one_line_and_exit_code_two(tmp_path):
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss" / "cases.json").write_text("{")
    done = sdpo("audit", "--goldens", "loss", "--quiet", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout.startswith("ERROR candidate=sdpo")
    assert len(done.stdout.strip().splitlines()) == 1
    assert "Traceback" not in done.stdout + done.stderr


def test_help_teaches_and_answers_at_once(tmp_path):
    started = time.monotonic()
    done = sdpo("audit", "--help", cwd=tmp_path)
    seconds = time.monotonic() - started
    assert done.returncode == 0
    for words in ("FILE.py:attr", "--goldens", "INCONCLUSIVE", "Example"):
        assert words in done.stdout
    assert all(f"`{name}`" in done.stdout for name in (*BUILT_IN, *TRAINERS))
    assert seconds < 3, "a second on an idle machine; the test allows for a busy one"
