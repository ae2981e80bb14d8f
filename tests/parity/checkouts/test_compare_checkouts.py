"""Checkouts are described in processes of their own; one that cannot be run is one line."""

import pytest

from sdpo.parity.checkouts.compare_checkouts import see_checkout
from sdpo.parity.live_fork.checkout import CheckoutError


def test_what_the_process_refuses_is_one_line(tmp_path):
    with pytest.raises(CheckoutError, match=r"^no checkout of verl found in .*: give the folder"):
        see_checkout(tmp_path)


def test_a_process_that_dies_is_told_by_its_last_line(tmp_path, monkeypatch):
    (tmp_path / "verl").mkdir()
    (tmp_path / "verl" / "__init__.py").touch()
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(CheckoutError, match="exit code 1"):
        see_checkout(tmp_path)
