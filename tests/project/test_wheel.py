"""The built wheel in a fresh environment, outside the checkout, in a repository of a user.

That repository has its own `reference`, `benchmark` and `fixtures`, which raise when imported.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest

from tests.helpers import candidates
from tests.helpers.golden_subset import subset
from tests.helpers.workflow_steps import ACTION, ROOT, SAMPLE, inputs, run_step, step_of

pytestmark = pytest.mark.slow

CANDIDATES = Path(candidates.__file__)
TESTS = """
import pytest

@pytest.mark.sdpo_parity("port/loss.py:correct", stages=["gradient"], goldens="goldens")
def test_holds(sdpo_parity):
    assert sdpo_parity().verdict == "PASS"

def test_departs(sdpo_parity):
    sdpo_parity("port.loss:zero_gradient", goldens="goldens")
"""


def run(*command: object, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    words = [str(word) for word in command]
    return subprocess.run(
        words, cwd=cwd, env=clean | env, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy of what is in the checkout, so that nothing is left there."""
    home = tmp_path_factory.mktemp("build")
    ignored = shutil.ignore_patterns(".git", ".venv", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, home / "source", ignore=ignored, symlinks=True)
    options = ("--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", home)
    done = run(sys.executable, "-m", "pip", "wheel", *options, home / "source", cwd=home)
    assert done.returncode == 0, done.stderr
    (found,) = home.glob("sdpo-*.whl")
    return found


def shared_folders() -> Iterator[str]:
    """Where the packages are that this environment has, without the checkout's own."""
    yield sysconfig.get_paths()["purelib"]
    for name in ("torch", "pytest"):
        yield str(Path(str(distribution(name).locate_file(""))).resolve())


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """A fresh environment with the wheel; other packages are shared with the running one."""
    home = tmp_path_factory.mktemp("environment")
    done = run(sys.executable, "-m", "venv", "--without-pip", home, cwd=home)
    assert done.returncode == 0, done.stderr
    (packages,) = home.glob("lib/python*/site-packages")
    # the folders are searched after its own, and their .pth files (the checkout) are not run
    (packages / "shared.pth").write_text("\n".join(dict.fromkeys(shared_folders())) + "\n")
    found = home / "bin" / "python"
    options = ("--no-deps", "--quiet", "--no-index", "--target", packages)
    done = run(sys.executable, "-m", "pip", "install", *options, wheel, cwd=home)
    assert done.returncode == 0, done.stderr
    return found


@pytest.fixture
def repository(tmp_path) -> Path:
    """A user's repository with a port, and folders named as ours."""
    (tmp_path / ".git").mkdir()
    (tmp_path / "port").mkdir()
    (tmp_path / "port" / "loss.py").write_text(CANDIDATES.read_text())
    for name in ("reference", "benchmark", "fixtures"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('not of sdpo')")
    subset(tmp_path / "goldens", ("P-L018", "P-L030"))
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_parity.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\npythonpath = .\naddopts = --strict-markers\n")
    return tmp_path


def test_the_wheel_has_all_that_is_needed_and_nothing_at_the_top(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name.split("/")[0].split("-")[0] for name in names} == {"sdpo"}
    for needed in (
        "sdpo/parity/report/report.schema.json",
        "sdpo/parity/report/deviations.toml",
        "sdpo/parity/render/report.html.j2",
        "sdpo/reference/PROVENANCE.toml",
        "sdpo/fixtures/golden/loss/cases.json",
        "sdpo/benchmark/problems/dataset.py",
    ):
        assert needed in names, needed


def test_the_package_is_the_wheel_and_not_the_checkout(python, repository):
    code = (
        "import sdpo, sdpo.reference, sdpo.fixtures; print(sdpo.__file__, sdpo.reference.__file__)"
    )
    done = run(python, "-c", code, cwd=repository)
    assert done.returncode == 0, done.stderr
    assert all(str(python.parents[1]) in path for path in done.stdout.split())


def test_audit_regate_trend_and_replay(python, repository):
    sdpo = (python, "-m", "sdpo")
    audit = ("audit", "port/loss.py:off_by_a_percent", "--goldens", "goldens", "--quiet")
    done = run(*sdpo, *audit, "--history", "h.jsonl", "--out", "out", cwd=repository)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.startswith("DIVERGENT candidate=port/loss.py:off_by_a_percent first=")
    (folder,) = (repository / "out").iterdir()
    run_document = json.loads((folder / "report.json").read_text())["runs"][0]
    assert run_document["location"]["file"] == str(repository / "port" / "loss.py")
    bundle = folder / run_document["bundles"][0]["file"]
    done = run(*sdpo, "replay", bundle, cwd=repository)
    assert (done.returncode, "replay=same" in done.stdout) == (1, True), done.stdout
    done = run(*sdpo, "regate", folder / "report.json", "--quiet", cwd=repository)
    assert done.returncode == 1, done.stdout
    done = run(*sdpo, "trend", "h.jsonl", cwd=repository)
    assert (done.returncode, done.stdout.split()[0]) == (0, "PASS"), done.stdout
    done = run(*sdpo, "audit", "--schema", cwd=repository)
    assert json.loads(done.stdout)["title"] == "Report of `sdpo audit`"


def test_pytest_plugin_of_the_wheel(python, repository):
    done = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=repository)
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert "DIVERGENT candidate=port.loss:zero_gradient first=gradient" in done.stdout


def test_steps_of_the_action(python, repository):
    output, summary = repository / "output", repository / "summary"
    given = inputs(candidate="port/loss.py:detached", goldens="goldens", install="")
    first, audit = ACTION["runs"]["steps"]
    assert first["if"] == "${{ inputs.install != '' }}"
    binaries = repository / "bin"
    binaries.mkdir()
    (binaries / "python").write_text(f'#!/bin/sh\nexec {python} "$@"\n')
    (binaries / "gh").write_text('#!/bin/sh\necho "$@"\n')
    for script in binaries.iterdir():
        script.chmod(0o755)
    files = {"GITHUB_OUTPUT": str(output), "GITHUB_STEP_SUMMARY": str(summary), "PYTHONPATH": ""}
    done = run_step(audit, given, repository, **files)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "::error file=port/loss.py,line=" in done.stdout
    assert "verdict=DIVERGENT\nfirst-stage=gradient\nexit-code=1\n" in output.read_text()
    assert summary.read_text().startswith("## DIVERGENT")
    sarif = json.loads(next((repository / "sdpo-parity").glob("*/report.sarif")).read_text())
    place = sarif["runs"][0]["results"][0]["locations"][0]["physicalLocation"]
    assert place["artifactLocation"] == {"uri": "port/loss.py", "uriBaseId": "%SRCROOT%"}
    context = {"github.token": "x", "github.event.pull_request.number": "7"}
    done = run_step(step_of(SAMPLE["jobs"]["parity"]["steps"], "Comment"), context, repository)
    assert "--body-file sdpo-parity/comment.md" in done.stdout, done.stderr
