"""The run of all performance parts keeps its progress; `--resume` leaves out what is finished."""

import json
from pathlib import Path

import pytest

from sdpo.benchmark.performance import __main__ as run
from sdpo.benchmark.performance import tables
from sdpo.parity.report import environment


def test_an_interrupted_run_goes_on_where_it_was(tmp_path, monkeypatch):
    measured, names = [], ["fused_loss", "audits", "executor_rate"]

    def measure(part, arguments, out):
        if part == "audits" and "audits" not in measured:
            measured.append("audits")
            raise SystemExit("interrupted")
        measured.append(part)
        (out / f"{part}.md").write_text(f"{part} took a second\n")

    monkeypatch.setattr(run, "measure", measure)
    with pytest.raises(SystemExit, match="interrupted"):
        run.measure_all(names, tmp_path, full=False, resume=False)
    assert [*json.loads((tmp_path / "parts.json").read_text())] == ["fused_loss"]
    run.measure_all(names, tmp_path, full=False, resume=True)
    assert measured == ["fused_loss", "audits", "audits", "executor_rate"]
    run.measure_all(names[:1], tmp_path, full=True, resume=True)
    assert measured[-1] == "fused_loss", "other arguments are another measurement"
    assert run.report(tmp_path).count("took a second") == 3


def test_a_report_names_the_processor(monkeypatch):
    known = "processor : 0\nmodel name\t: Some CPU @ 2 GHz\nmodel name : Another\n"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: known)
    monkeypatch.setattr(Path, "is_file", lambda _: True)
    assert tables.machine(threads=2).endswith(", Some CPU @ 2 GHz, 2 threads, float32")
    monkeypatch.setattr(Path, "is_file", lambda _: False)
    monkeypatch.setattr(environment.platform, "machine", lambda: "some64")
    assert environment.processor() == "some64"
