"""Describes checkouts, each in a process of its own, and audits those that have SDPO."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from sdpo.parity.checkouts.description import CheckoutDescription
from sdpo.parity.live_fork.checkout import VARIABLE, CheckoutError
from sdpo.parity.record.launch import with_kernels
from sdpo.parity.report.run_report import RunReport

AUDIT = ("-m", "sdpo", "audit", "verl", "--json", "--bundles", "0")


class SeenCheckout(NamedTuple):
    """A checkout and, where it has SDPO, its audit at all sixteen stages."""

    description: CheckoutDescription
    audit: RunReport | None


def see_checkouts(folders: Sequence[Path]) -> list[SeenCheckout]:
    """Describe and audit checkouts.

    Raises:
        CheckoutError: one of them cannot be run; the message is one line.
    """
    return [see_checkout(folder) for folder in folders]


def see_checkout(folder: Path) -> SeenCheckout:
    """Describe and audit one checkout.

    Raises:
        CheckoutError: it cannot be run.
    """
    printed = _printed(folder, "-W", "ignore", "-m", "sdpo.parity.checkouts.describe", str(folder))
    description = msgspec.json.decode(printed, type=CheckoutDescription)
    if not description.has_sdpo:
        return SeenCheckout(description, None)
    (run,) = json.loads(_printed(folder, *AUDIT))["runs"]
    return SeenCheckout(description, msgspec.convert(run, RunReport))


def _printed(folder: Path, *arguments: str) -> str:
    """What a command prints last; it runs with the kernels of the recording."""
    environment = with_kernels({**os.environ, VARIABLE: str(folder.resolve())})
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    lines = done.stdout.strip().splitlines()
    if not lines or lines[-1].startswith("ERROR "):
        told = lines or done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise CheckoutError(told[-1].removeprefix("ERROR "))
    return lines[-1]
