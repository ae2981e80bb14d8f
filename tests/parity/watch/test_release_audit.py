"""A release is audited by the interpreter of its environment; an audit that is lost says how."""

import sys
from pathlib import Path

import pytest

from sdpo.parity.watch.changes import changes
from sdpo.parity.watch.environments import Environment
from sdpo.parity.watch.release_audit import AuditLostError, Workshop, run_audit
from sdpo.parity.watch.upstreams import Upstream
from tests.helpers import candidates
from tests.helpers.stand_in_releases import offline_index, wheel

SCALED = """
import functools
import standin

@functools.wraps(correct)
def loss(*args, **kwargs):
    return standin.FACTOR * first(correct(*args, **kwargs))
"""


def interpreter(folder: Path, script: str) -> Environment:
    """An environment whose interpreter is a shell script."""
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    return Environment(folder)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo '{}'; exit 9", "exit code 9 and without a report: {}"),
        ("echo no report; exit 0", "exit code 0 and without a report: no report"),
        ("kill -9 $$", "exit code -9"),
    ],
)
def test_an_audit_without_a_report_says_how_it_ended(tmp_path, script, words):
    with pytest.raises(AuditLostError, match=words):
        run_audit(interpreter(tmp_path / "e", script), "trl", tmp_path / "out", {})


def test_an_earlier_report_of_the_release_does_not_stay(tmp_path):
    old = tmp_path / "out" / "trl" / "report.json"
    old.parent.mkdir(parents=True)
    old.touch()
    with pytest.raises(AuditLostError):
        run_audit(interpreter(tmp_path / "e", "exit 2"), "trl", tmp_path / "out", {})
    assert not old.exists()


def test_the_environment_knows_nothing_of_ours_but_the_harness(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/ours")
    monkeypatch.setenv("VIRTUAL_ENV", "/ours")
    shown = tmp_path / "shown"
    script = f"env > {shown}; ls $PYTHONPATH/sdpo >> {shown}; echo $@ >> {shown}; exit 2"
    with pytest.raises(AuditLostError):
        run_audit(interpreter(tmp_path / "e", script), "verl", tmp_path / "o", {"SDPO_X": "c"})
    text = shown.read_text()
    assert "/ours" not in text
    assert {"SDPO_X=c", "PYTHONSAFEPATH=1", "reference", "fixtures"} <= set(text.splitlines())
    assert "-m sdpo audit verl --json" in text


@pytest.mark.slow
def test_a_real_audit_in_a_real_environment_sees_the_release_that_moved(tmp_path, monkeypatch):
    """The stand-in's second release doubles the loss; audits borrow torch from this environment."""
    for version, factor in (("1.0", 1.0), ("1.1", 2.0)):
        wheel(tmp_path / "index", version, code=f"FACTOR = {factor}\n")
    for name, value in offline_index(tmp_path / "index").items():
        monkeypatch.setenv(name, value)
    adapter = tmp_path / "port.py"
    adapter.write_text(Path(candidates.__file__).read_text() + SCALED)

    def run(environment, candidate, folder, variables):
        (site,) = (environment.folder / "lib").glob("python*/site-packages")
        ours = next(path for path in sys.path if path.endswith("site-packages"))
        (site / "borrowed.pth").write_text(f"{ours}\n")
        return run_audit(environment, candidate, folder, variables)

    upstream = Upstream(f"{adapter}:loss", "standin")
    workshop = Workshop(
        tmp_path / "cache",
        tmp_path / "out",
        requirements=lambda upstream, release, _: [f"{upstream.package}=={release}"],
        run=run,
    )
    first, second = (workshop.audit(upstream, release) for release in ("1.0", "1.1"))
    assert (first.verdict, second.verdict) == ("PASS", "DIVERGENT"), (first.note, second.note)
    assert second.versions["standin"] == "1.1"
    moved = changes([first, second], [])
    assert {change.kind for change in moved} == {"introduced"}
    assert {change.release for change in moved} == {"1.1"}
