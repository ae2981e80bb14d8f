"""The pytest plugin as a user's repository runs it: verdicts, messages, and no cost when unused."""

import subprocess
import sys
from pathlib import Path

import pytest

from sdpo.parity.pytest_plugin import listed, located_candidate, marked, message
from tests.helpers import candidates, run_documents
from tests.helpers.golden_subset import subset

pytestmark = pytest.mark.usefixtures("certificates_once", "budgets_once")

CANDIDATES = Path(candidates.__file__)

TESTS = """
import sys
import pytest
import port

GOLDENS = {goldens!r}

@pytest.mark.sdpo_parity("port.py:correct", stages=["aggregate", "gradient"], goldens=GOLDENS)
def test_holds(sdpo_parity):
    run = sdpo_parity()
    assert (run.verdict, run.coverage.covered) == ("PASS", ["aggregate", "gradient"])

@pytest.mark.sdpo_parity(goldens=GOLDENS)
def test_departs(sdpo_parity):
    sdpo_parity(port.zero_gradient)

def test_nothing_compared(sdpo_parity):
    sdpo_parity("port:correct", stages="tail", goldens=GOLDENS)

def test_no_candidate(sdpo_parity):
    sdpo_parity()

def test_local(sdpo_parity):
    sdpo_parity(lambda: None)

def test_unknown(sdpo_parity):
    sdpo_parity("port.py:correct", tolerance=1)
"""


def run_pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # by its module: this checkout's; tests/project/test_wheel.py has the built wheel's
    plugin = ["-p", "no:sdpo_parity", "-p", "sdpo.parity.pytest_plugin", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-q", *plugin, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A repository with its own `reference` and `benchmark`, which must not be taken for ours."""
    home = tmp_path_factory.mktemp("repository")
    (home / "port.py").write_text(CANDIDATES.read_text())
    for name in ("reference", "benchmark", "fixtures"):
        (home / name).mkdir()
        (home / name / "__init__.py").write_text("raise ImportError('not yours')")
    goldens = str(subset(home / "goldens", ("P-L018", "P-L030")))
    (home / "tests").mkdir()
    (home / "tests" / "test_parity.py").write_text(TESTS.replace("{goldens!r}", repr(goldens)))
    (home / "pyproject.toml").write_text(
        '[tool.pytest.ini_options]\naddopts = "--strict-markers"\npythonpath = ["."]\n'
    )
    return home


@pytest.mark.slow
def test_verdicts_of_a_users_tests(repository):
    done = run_pytest(repository, "--sdpo-parity-out", "out", "tests")
    said = done.stdout
    assert "5 failed, 1 passed" in said, said + done.stderr
    assert f"DIVERGENT candidate={repository}/port.py:zero_gradient first=gradient" in said
    assert "gradient: DIVERGENT" in said
    assert "INCONCLUSIVE candidate=port:correct" in said
    assert "no candidate in the marker or in the call" in said
    assert "is not at the top of a module" in said
    assert "unknown ['tolerance']" in said
    reports = {path.parent.name for path in (repository / "out").glob("*/report.md")}
    assert len(reports) == 3


def test_the_call_wins_over_the_marker_and_files_are_found(tmp_path):
    marker = pytest.mark.sdpo_parity("port.py:f", stages=["tail"]).mark
    assert marked(marker) | {"stages": "support"} == {"candidate": "port.py:f", "stages": "support"}
    assert marked(None) == {}
    (tmp_path / "port.py").touch()
    assert (
        located_candidate("port.py:f", (tmp_path / "absent", tmp_path)) == f"{tmp_path}/port.py:f"
    )
    assert located_candidate("port.py:f", ()) == "port.py:f"
    assert located_candidate("pkg.port:f", (tmp_path,)) == "pkg.port:f"
    assert (listed(None), listed("a"), listed(("a", "b"))) == ([], ["a"], ["a", "b"])


def test_a_failing_test_names_stage_fault_and_report(tmp_path):
    said = message(run_documents.divergent(), tmp_path).splitlines()
    assert said[0].startswith("DIVERGENT candidate=loss.py:f first=tail")
    assert said[1] == (
        "  looks like: M07 mean over masked rows (24 of 25); also M15 | mask (1 of 25)"
    )
    assert said[-2:] == [
        "  aggregate: DIVERGENT, 1 of 1 over budget",
        f"  report: {tmp_path / 'report.md'}",
    ]


def test_plugin_costs_nothing_while_unused(tmp_path):
    (tmp_path / "test_x.py").write_text(
        "import sys\n"
        "def test_x(pytestconfig):\n"
        "    assert 'sdpo.parity.pytest_plugin' in sys.modules\n"
        "    heavy = {'torch', 'numpy', 'matplotlib', 'pandas', 'sdpo.parity.audit.launch'}\n"
        "    assert not heavy & sys.modules.keys()\n"
    )
    done = run_pytest(tmp_path, "-p", "no:hypothesispytest", "test_x.py")
    assert "1 passed" in done.stdout, done.stdout
    listed = run_pytest(tmp_path, "--markers").stdout
    assert "@pytest.mark.sdpo_parity(candidate, stages" in listed
