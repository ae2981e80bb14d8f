"""The run of the tests with other processors' kernels: all environments, failures named."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import on_processors

ROOT = Path(__file__).parents[2]


def test_a_failing_environment_is_named_and_the_others_run(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import os\n"
        "def test_vectors(): assert 'ATEN_CPU_CAPABILITY' not in os.environ\n"
        "def test_kernels(): assert os.environ.get('MKL_CBWR') in (None, 'COMPATIBLE')\n"
    )
    script = str(ROOT / "tests" / "on_processors.py")
    names = ["native", "default", "compatible"]
    command = [sys.executable, script, "--only", *names, "--", str(tmp_path), "-q"]
    # set outside: an environment begins without what another one sets
    outside = {**os.environ, "MKL_CBWR": "AVX2"}
    done = subprocess.run(command, env=outside, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "== native: passed" in done.stdout
    assert "== default: FAILED (pytest returned 1)" in done.stdout
    assert "== compatible: passed" in done.stdout
    assert done.stdout.rstrip().endswith("2 of 3 environments passed; failed: default")


@pytest.mark.parametrize(("arguments", "runs"), [([], 5), (["--numeric"], 2)])
def test_which_environments_run(arguments, runs, monkeypatch):
    ran = []
    monkeypatch.setattr(on_processors, "ran_well", lambda *call: ran.append(call) is None)
    assert on_processors.main(arguments) == 0
    assert len(ran) == runs
    assert all((ROOT / path).exists() for _, paths in ran for path in paths)
