"""An audit that cannot start: one line, exit code 2, no report; the other candidates still run."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from sdpo.cli import main
from sdpo.parity.audit import launch
from sdpo.parity.audit.audit import audit
from sdpo.parity.audit.child_process import Crash, Ended
from sdpo.parity.audit.github_action import main as action
from sdpo.parity.audit.report_files import RENDERED
from sdpo.parity.audit.request import Request
from sdpo.parity.render.text import first_line, text_report
from tests.helpers.report_schema import VALIDATOR

HERE = Path(__file__).parents[2] / "helpers" / "candidates.py"
FILES = {
    "ok.py": "number = 3\ndef f(x): return x\n",
    "exits.py": "import sys\nsys.exit(3)\n",
    "needs.py": "import a_package_that_is_not_there\n",
    "needs_trl.py": "raise ModuleNotFoundError(name='trl')\n",
    "broken.py": "def (\n",
    "half.py": "raise RuntimeError('half of a character: \\ud800')\n",
    "builds.py": "class Loss:\n    def __init__(self): raise ValueError('no settings')\n",
    "trainer.py": (
        "from sdpo.parity.trainers.adapters.trl import TRL\n"
        "class Old(TRL):\n    versions = '<1'\n"
        "class Gone(TRL):\n    imports = ('a_package_that_is_not_there',)\n"
    ),
    "empty.toml": "",
    "bad.toml": "x",
    "golden/loss/cases.json": "{",
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with candidates that cannot be loaded; audits run in this process."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "nothing").mkdir()

    def in_this_process(arguments, request, log, result_type):
        with log.open("w") as output, contextlib.redirect_stdout(output):
            return Ended(audit(request), 0)

    monkeypatch.setattr(launch, "run_child", in_this_process)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sdpo(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code, capsys.readouterr().out


WAYS = [
    (["nomodule"], "no module is called 'nomodule'; built in are"),
    (["."], "no module is called '.'"),
    ([""], "no module is called ''"),
    (["absent.py:f"], "no file absent.py; give FILE.py:attr"),
    (["ok.py::f"], "cannot tell what to give x of ok.py::f"),
    (["ok.py:absent"], "has no attribute 'absent'; it has ['number', 'f']"),
    (["ok.py:number"], "int is no candidate: give a loss function"),
    (["ok.py"], "cannot tell what to give x of ok.py"),
    (["ok.py:f"], "`sdpo init ok.py:f` writes a wrapper"),
    (["exits.py:f"], "raised SystemExit: 3"),
    (["needs.py:f"], "needs the package 'a_package_that_is_not_there', which is not installed"),
    (["needs_trl.py:f"], "which is not installed: pip install 'sdpo[train]'"),
    (["broken.py:f"], "raised SyntaxError"),
    (["half.py:f"], "half of a character: \\ud800"),
    (["builds.py:Loss"], "raised ValueError: no settings"),
    (["trainer.py:Old"], "but its adapter was written for trl<1"),
    (["trainer.py:Gone"], "trl needs the package 'a_package_that_is_not_there', which is not"),
    (["verl"], "no checkout of verl found"),
    (["sdpo", "--goldens", "absent"], "absent is not a folder"),
    (["sdpo", "--goldens", "nothing"], "nothing has neither a cases.json"),
    (["sdpo", "--goldens", "golden"], "is not JSON"),
    (["sdpo", "--declared", "absent"], "cannot read absent"),
    (["sdpo", "--declared", "bad.toml"], "bad.toml is not TOML"),
    (["sdpo", "--stages", "tial"], "--stages: unknown stages ['tial']; valid are config"),
    (["sdpo", "--require", "tial"], "--require: unknown stages ['tial']"),
    (["sdpo", "--write-ledger", "empty.toml"], "a ledger is never overwritten"),
    (["sdpo", "--out", "ok.py"], "cannot write to ok.py"),
    (["sdpo", "--out", "ok.py/below"], "cannot write to ok.py/below"),
    (["sdpo", "--out", "/proc/x"], "cannot write to /proc/x"),
]


@pytest.mark.parametrize(
    ("arguments", "words"),
    WAYS,
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_one_line_and_no_report(arguments, words, here, capsys):
    before = sorted(here.rglob("*"))
    code, printed = sdpo(capsys, "audit", *arguments, "--history", "history.jsonl")
    assert code == 2
    (line,) = printed.splitlines()
    assert line.startswith(f"ERROR candidate={arguments[0]} message=")
    assert words in line
    assert "NOT_COVERED" not in line
    assert "coverage=" not in line
    left = [path for path in here.rglob("*") if path not in before]
    assert [path for path in left if "__pycache__" not in path.parts] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    WAYS[::5],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_json_stays_one_document_with_the_error(arguments, words, here, capsys):
    code, printed = sdpo(capsys, "audit", *arguments, "--json")
    document = json.loads(printed)
    VALIDATOR.validate(document)
    assert code == 2
    (message,) = [run["message"] for run in document["runs"]] or [document["error"]]
    assert words in message
    assert [run["verdict"] for run in document["runs"]] == ["ERROR"] * len(document["runs"])


def test_the_other_candidates_still_run(here, capsys, goldens, relations_once):
    code, printed = sdpo(
        capsys,
        "audit",
        "ok.py:f",
        f"{HERE}:correct",
        "absent.py:f",
        "--goldens",
        goldens,
        "--quiet",
    )
    assert code == 2
    first = [line.split()[0] for line in printed.splitlines()]
    assert first == ["ERROR", "PASS", "ERROR"]
    (folder,) = (here / "reports" / "audit").iterdir()
    assert (folder / "report.json").is_file()


def test_several_candidates_are_refused_in_one_line(here, capsys):
    code, printed = sdpo(capsys, "audit", "sdpo", "reference", "--stages", "tial")
    assert code == 2
    assert len(printed.splitlines()) == 1
    assert printed.startswith("ERROR --stages: unknown stages ['tial']")


def test_reports_of_an_earlier_audit_do_not_stay(here, capsys):
    folder = here / "reports" / "audit" / "ok.py-f"
    (folder / "bundles").mkdir(parents=True)
    for name in (*RENDERED, "overview.png", "bundles/P-L001.zip"):
        (folder / name).write_text("of an earlier audit, which passed")
    assert sdpo(capsys, "audit", "ok.py:f")[0] == 2
    assert not (here / "reports" / "audit" / "ok.py-f").exists()


def test_what_was_printed_before_the_end_stays_and_is_named(here, capsys, monkeypatch):
    def ended(arguments, request, log, result_type):
        log.write_text("the last words\n")
        return Ended(None, -11)

    monkeypatch.setattr(launch, "run_child", ended)
    code, printed = sdpo(capsys, "audit", "ok.py:f")
    log = Path("reports/audit/ok.py-f/candidate.log")
    assert code == 2
    assert len(printed.splitlines()) == 1
    assert (
        f"ended the process (signal 11) before the audit was complete; what was printed: {log}"
        in (printed)
    )
    assert [path.name for path in log.parent.iterdir()] == ["candidate.log"]


def test_a_defect_of_ours_is_not_charged_to_the_candidate(tmp_path, monkeypatch):
    """`answer` runs in a process of its own."""
    code = (
        "import sys\n"
        "from sdpo.parity.audit import audit, worker\n"
        "def broken(*_): raise KeyError('a bug')\n"
        "audit.judge = broken\n"
        "worker.main(*sys.argv[1:])\n"
    )
    request, result = tmp_path / "request.json", tmp_path / "result.json"
    request.write_text(json.dumps({"candidate": "sdpo"}))
    command = [sys.executable, "-c", code, str(request), str(result)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Traceback" in done.stdout
    assert done.stderr == ""
    crash = msgspec.json.decode(result.read_bytes(), type=Crash)
    run = launch.lost(Request("sdpo"), Ended(crash, done.returncode))
    assert "the audit itself failed: KeyError: 'a bug' (at sdpo.parity.audit.audit:" in run.message
    assert not run.started


def test_text_has_no_table_without_an_audit():
    run = launch.unstarted(Request("port.py:f"), "a reason")
    expected = 'ERROR candidate=port.py:f message="a reason" repro="sdpo audit port.py:f"'
    assert text_report(run) == first_line(run) == expected


def test_a_report_that_cannot_be_written_is_an_error_and_the_verdict_is_said(
    here, capsys, monkeypatch, goldens, relations_once
):
    """Of the others nothing is lost, in text and in JSON."""
    arguments = ("audit", f"{HERE}:correct", f"{HERE}:module", "--goldens", goldens)
    write = launch.write_reports

    def full(run, folder):
        if run.candidate.endswith(":correct"):
            raise OSError(28, "No space left on device", str(folder / "report.json"))
        write(run, folder)

    monkeypatch.setattr(launch, "write_reports", full)
    code, printed = sdpo(capsys, *arguments, "--quiet")
    lines = printed.splitlines()
    assert code == 2
    assert lines[0].startswith(f"ERROR candidate={HERE}:correct message=")
    assert "No space left on device; the disk is full" in lines[0]
    assert "the verdict was PASS" in lines[0]
    assert [line.split()[0] for line in lines] == ["ERROR", "PASS", "PASS"]
    code, printed = sdpo(capsys, *arguments, "--json")
    document = json.loads(printed)
    VALIDATOR.validate(document)
    assert code == 2
    assert [run["verdict"] for run in document["runs"]] == ["PASS", "PASS"]
    assert "No space left on device" in document["error"]


def test_a_history_that_cannot_be_written_loses_no_run(here, capsys, goldens, relations_once):
    arguments = ("audit", f"{HERE}:correct", f"{HERE}:module", "--goldens", goldens)
    code, printed = sdpo(capsys, *arguments, "--history", "/proc/x/h", "--json")
    document = json.loads(printed)
    assert code == 2
    assert [run["verdict"] for run in document["runs"]] == ["PASS", "PASS"]
    assert "cannot write to /proc/x/h" in document["error"]


def test_the_action_says_error_where_one_of_several_cannot_start(
    here, capsys, goldens, relations_once
):
    outputs = here / "outputs"
    variables = {
        "SDPO_CANDIDATE": f"{HERE}:correct\nok.py:f",
        "SDPO_GOLDENS": str(goldens),
        "GITHUB_OUTPUT": str(outputs),
    }
    assert action(variables) == 2
    assert "verdict=ERROR\n" in outputs.read_text()
    comment = (here / "sdpo-parity" / "comment.md").read_text()
    assert "ERROR: `ok.py:f`" in comment
    assert "cannot tell what to give x" in comment
