"""What `import sdpo` offers, and what it costs."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from sdpo.settings.config import SDPOConfig

sdpo: Any = import_module("sdpo")
parity: Any = import_module("sdpo.parity")
DOCS = Path(__file__).parents[2] / "docs"


def test_every_public_name_is_there():
    names = [name for name in sdpo.__all__ if name != "__version__"]
    assert len(names) > 3
    for name in names:
        assert getattr(sdpo, name).__name__ == name
        assert name in dir(sdpo)
    assert sdpo.SDPOConfig is SDPOConfig


def test_the_type_checker_sees_what_is_loaded():
    assert set(sdpo._HOMES) | {"__version__"} == set(sdpo.__all__)


def test_every_name_of_the_harness_is_there_and_documented():
    pages = "".join((DOCS / page).read_text() for page in ("audit.md", "trainer_adapters.md"))
    for name in parity.__all__:
        assert getattr(parity, name) is not None
        assert name in dir(parity)
        assert f"`{name}`" in pages, name
    assert set(parity._HOMES) == set(parity.__all__)


def test_the_harness_says_what_it_has_in_place_of_another_name():
    with pytest.raises(AttributeError, match=r"'sdpo\.parity' has no attribute 'read_raport'; it"):
        parity.read_raport  # noqa: B018


def test_a_report_that_was_written_is_read_through_the_public_names(tmp_path):
    file = tmp_path / "report.json"
    file.write_text('{"schema_version": 1, "runs": [], "error": "nothing was audited"}')
    assert parity.read_report(file) == parity.Report(
        schema_version=1, runs=[], error="nothing was audited"
    )
    file.write_text('{"schema_version": 2, "runs": []}')
    with pytest.raises(parity.ReportError, match="no report of schema_version 1"):
        parity.read_report(file)


def test_another_name_says_what_there_is():
    with pytest.raises(AttributeError, match=r"no attribute 'SDPOTrainr'; it has .*'SDPOTrainer'"):
        sdpo.SDPOTrainr  # noqa: B018


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, sdpo, sdpo.parity; sdpo.__version__; "
        "print([m for m in ('torch', 'numpy', 'transformers', 'trl', 'typer') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
