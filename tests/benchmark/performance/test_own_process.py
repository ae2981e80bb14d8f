"""A measurement in a process of its own."""

import subprocess
import sys

import pytest

from sdpo.benchmark.performance.own_process import measure_in_process


def test_rows_have_what_was_measured_and_the_load(capsys, monkeypatch):
    done = subprocess.CompletedProcess([], 0, 'a warning\n{"seconds": 2.0}\n{"seconds": 3.0}\n')
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    rows = list(measure_in_process("some.module", ["--fast"], {"name": "ours"}))
    assert [(row["name"], row["seconds"]) for row in rows] == [("ours", 2.0), ("ours", 3.0)]
    assert all("load" in row for row in rows)
    assert "ours" in capsys.readouterr().err


def test_a_process_that_fails_stops_the_measurement():
    with pytest.raises(subprocess.CalledProcessError):
        list(measure_in_process("sdpo.no_such_module", [], {}))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_peak_counts_memory_that_was_touched():
    """In a process of its own: a kernel may take cold pages from one that has run for minutes."""
    code = (
        "from sdpo.benchmark.performance.own_process import MemoryPeak\n"
        "peak = MemoryPeak()\n"
        "touched = bytearray(64 * 2**20)\n"
        "print(peak.gib())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 64 / 2**10 * 0.9 < float(done.stdout) < 0.5
