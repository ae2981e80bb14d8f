"""`sdpo audit` as a user runs it: first line, exit code, files, one JSON document."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sdpo.cli import main
from sdpo.parity.audit import launch
from sdpo.parity.audit.audit import audit
from sdpo.parity.audit.child_process import Ended
from sdpo.parity.audit.load_candidate import BUILT_IN, TRAINERS, load_candidate
from sdpo.parity.cases.checked_call import CandidateError
from tests.helpers import candidates

pytestmark = pytest.mark.usefixtures("certificates_once", "budgets_once")


def sdpo(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sdpo", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_candidate_run_writes_reports_and_keeps_its_noise_out(tmp_path, goldens):
    candidate = f"{candidates.__file__}:correct"
    options = ("--json", "--stages", "aggregate,gradient", "--goldens", str(goldens))
    done = sdpo("audit", candidate, *options, cwd=tmp_path)
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
    assert done.stdout.startswith('ERROR candidate=sdpo message="cannot write to taken')


def test_damaged_goldens_end_each_candidate_with_one_line_and_exit_code_two(
    tmp_path, monkeypatch, capfd
):
    def in_this_process(arguments, request, log, result_type):
        return Ended(audit(request), 0)

    monkeypatch.setattr(launch, "run_child", in_this_process)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss" / "cases.json").write_text("{")
    with pytest.raises(SystemExit) as ended:
        main(["audit", "sdpo", "reference", "--goldens", "loss", "--quiet"])
    assert ended.value.code == 2
    printed = capfd.readouterr()
    assert [line.split()[:2] for line in printed.out.strip().splitlines()] == [
        ["ERROR", "candidate=sdpo"],
        ["ERROR", "candidate=reference"],
    ]
    assert "Traceback" not in printed.out + printed.err


def test_help_teaches_and_answers_at_once(tmp_path):
    started = time.monotonic()
    done = sdpo("audit", "--help", cwd=tmp_path)
    seconds = time.monotonic() - started
    assert done.returncode == 0
    for words in ("FILE.py:attr", "--goldens", "INCONCLUSIVE", "Example"):
        assert words in done.stdout
    assert all(f"`{name}`" in done.stdout for name in (*BUILT_IN, *TRAINERS))
    assert seconds < 3, "a second on an idle machine; the test allows for a busy one"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("refernce", "no module is called 'refernce'; built in are ['sdpo', 'reference',"),
        ("sdpo-trianer", "no module is called 'sdpo-trianer'; built in are"),
        ("sdpo.suport", "no module 'sdpo.suport' in the package 'sdpo', which is installed: check"),
        ("no_such_package.loss:f", "needs the package 'no_such_package', which is not installed"),
        ("nowhere.py:f", "no file nowhere.py; give FILE.py:attr"),
    ],
)
def test_a_misspelt_candidate_is_told_what_to_do(name, words):
    with pytest.raises(CandidateError, match=re.escape(words)):
        load_candidate(name)
