"""The checkout of lasgroup/SDPO that some tests need; without it they are skipped."""

import os
from pathlib import Path

import pytest

CHECKOUT = os.environ.get("SDPO_VERL_CHECKOUT", "")
needs_checkout = pytest.mark.skipif(
    not CHECKOUT, reason="SDPO_VERL_CHECKOUT names no checkout of lasgroup/SDPO"
)


def checkout() -> Path:
    """The folder that holds `verl/`."""
    return Path(CHECKOUT).resolve()
