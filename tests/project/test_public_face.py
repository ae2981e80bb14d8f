"""What `import sdpo` offers, and what it costs."""

import subprocess
import sys
from importlib import import_module
from typing import Any

import pytest

from sdpo.settings.config import SDPOConfig

sdpo: Any = import_module("sdpo")


def test_every_public_name_is_there():
    names = [name for name in sdpo.__all__ if name != "__version__"]
    assert len(names) > 3
    for name in names:
        assert getattr(sdpo, name).__name__ == name
        assert name in dir(sdpo)
    assert sdpo.SDPOConfig is SDPOConfig


def test_the_type_checker_sees_what_is_loaded():
    assert set(sdpo._HOMES) | {"__version__"} == set(sdpo.__all__)


def test_another_name_says_what_there_is():
    with pytest.raises(AttributeError, match=r"no attribute 'SDPOTrainr'; it has .*'SDPOTrainer'"):
        sdpo.SDPOTrainr  # noqa: B018


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, sdpo; sdpo.__version__; "
        "print([m for m in ('torch', 'numpy', 'transformers', 'trl', 'typer') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
