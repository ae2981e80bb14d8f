"""A failure of ours is one line and exit code 2, never 1, whatever the command."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sdpo.cli import main
from sdpo.parity.cases.failure import described, missing

HELPERS = Path(__file__).parents[1] / "helpers"
COMMANDS = {
    "audit": (["audit"], "sdpo.parity.audit.launch.audit_all"),
    "regate": (["regate", "report.json"], "sdpo.parity.audit.rejudge_and_replay.regate_all"),
    "replay": (["replay", "case.zip"], "sdpo.parity.audit.rejudge_and_replay.replay_one"),
    "trend": (["trend", "history.jsonl"], "sdpo.parity.report.history.read"),
    "drift": (["drift"], "sdpo.parity.drift.default_drift.drift"),
    "mutants": (["mutants"], "sdpo.cli.mutants._run"),
    "exec": (
        ["mbpp", "exec", "cases", "--out", "out"],
        "sdpo.benchmark.scoring.score_file.count_cases",
    ),
    "check": (["mbpp", "check"], "sdpo.benchmark.problems.dataset.load_hub"),
    "run": (["mbpp", "run"], "sdpo.benchmark.runs.settings.load"),
    "eval": (["mbpp", "eval", "embedded"], "sdpo.benchmark.runs.settings.load"),
    "bench": (["mbpp", "bench"], "sdpo.benchmark.runs.settings.load"),
    "report": (["mbpp", "report"], "sdpo.benchmark.results.report.write_report"),
}
FAILURES = {
    "defect": (KeyError("a bug"), "KeyError: 'a bug'"),
    "read-only": (
        OSError(errno.EROFS, "Read-only file system", "/there/report.md"),
        "Read-only file system",
    ),
    "full": (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
    "encoding": (UnicodeEncodeError("ascii", "Δ", 0, 1, "not in range"), "UnicodeEncodeError"),
    "package": (ModuleNotFoundError("none", name="trl"), "pip install 'sdpo[train]'"),
    "memory": (MemoryError(), "MemoryError"),
}


def ended(capsys, arguments):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    return exit_.value.code, capsys.readouterr()


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_is_one_line_and_exit_code_two(command, failure, monkeypatch, capsys):
    arguments, place = COMMANDS[command]
    error, words = FAILURES[failure]

    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr(place, fails)
    code, printed = ended(capsys, arguments)
    assert code == 2
    (line,) = printed.out.splitlines()
    assert line.startswith("ERROR ")
    assert words in line
    assert printed.err == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_ctrl_c_is_one_line_and_never_exit_code_one(command, monkeypatch, capsys):
    arguments, place = COMMANDS[command]

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(place, interrupted)
    code, printed = ended(capsys, arguments)
    assert code == 130
    assert len(printed.out.splitlines()) == 1
    assert printed.out.startswith("ERROR interrupted")


@pytest.mark.parametrize("command", ["audit", "regate", "replay", "trend", "drift", "mutants"])
def test_with_json_a_failure_is_one_document(command, monkeypatch, capsys):
    arguments, place = COMMANDS[command]

    def fails(*args, **kwargs):
        raise KeyError("a bug")

    monkeypatch.setattr(place, fails)
    code, printed = ended(capsys, [*arguments, "--json"])
    assert code == 2
    document = json.loads(printed.out)
    assert (document["schema_version"], document["runs"]) == (1, [])
    assert "KeyError: 'a bug' (at " in document["error"] or "'a bug'" in document["error"]


def test_wrong_usage_with_json_is_one_document(capsys):
    code, printed = ended(capsys, ["audit", "--json", "--nonsense"])
    assert code == 2
    assert "--nonsense" in json.loads(printed.out)["error"]


def test_the_traceback_is_there_for_who_wants_it(monkeypatch, capsys):
    arguments, place = COMMANDS["drift"]

    def fails(*args, **kwargs):
        raise KeyError("a bug")

    monkeypatch.setattr(place, fails)
    monkeypatch.setenv("SDPO_TRACEBACK", "1")
    code, printed = ended(capsys, arguments)
    assert code == 2
    assert "Traceback" in printed.err
    assert "a bug" in printed.err


def sdpo(*arguments, cwd, **options):
    command = [sys.executable, "-m", "sdpo", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, **options)


def test_an_output_without_the_characters_gets_question_marks(tmp_path, goldens):
    """Also what a candidate prints, which goes to a log, is never a failure of the candidate."""
    (tmp_path / "port.py").write_text(
        f"import sys\nsys.path.insert(0, {str(HELPERS)!r})\nfrom candidates import correct\n"
        "def loss(*args, **kwargs):\n    print('≠')\n    return correct(*args, **kwargs)\n",
        encoding="utf-8",
    )
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    options = ("--goldens", goldens, "--bundles", "0")
    done = sdpo("audit", "port.py:loss", *options, cwd=tmp_path, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("PASS candidate=port.py:loss")
    assert "max |?|" in done.stdout
    log = tmp_path / "reports" / "audit" / "port.py-loss" / "candidate.log"
    assert "≠" in log.read_text(encoding="utf-8")
    done = sdpo("drift", cwd=tmp_path, env=environment)
    assert (done.returncode, done.stderr) == (0, "")


def test_json_keeps_every_character_in_any_encoding(tmp_path):
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = sdpo("audit", "größe.py:f", "--json", cwd=tmp_path, env=environment)
    assert done.returncode == 2
    assert json.loads(done.stdout)["runs"][0]["candidate"] == "größe.py:f"


def test_a_full_disk_behind_the_output(tmp_path):
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "sdpo", "audit", "--schema"]
        done = subprocess.run(command, cwd=tmp_path, stdout=full, stderr=-1, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("ERROR No space left on device; the disk is full")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("output", ["schema", "help"])
def test_a_reader_that_goes_away_is_no_failure(output, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "sdpo", "audit", f"--{output}"]
    done = subprocess.run(command, cwd=tmp_path, stdout=writing, stderr=-1, text=True, check=False)
    os.close(writing)
    assert done.returncode != 1
    assert done.stderr == ""


def test_what_is_said_of_a_failure():
    assert described(FileNotFoundError(2, "No such file or directory", "a")) == (
        "a: No such file or directory"
    )
    assert described(ValueError("two\nlines")) == "ValueError: two lines"
    assert described(RuntimeError()) == "RuntimeError: no message"
    assert missing("trl.experimental").endswith("pip install 'sdpo[train]'") or "trl" in sys.modules
    assert missing("a_package").endswith("is not installed: install it")
