"""Runs measurements in processes of their own, and reads a process's clock and memory."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from sdpo.benchmark.performance.tables import Row

GIB = 2**30


def measure_in_process(
    module: str, arguments: Sequence[str], labels: Mapping[str, float | str]
) -> Iterator[Row]:
    """Run a module in a fresh interpreter; yields the JSON lines that it prints, with the load.

    Args:
        module: for `python -m`.
        arguments: of its command line.
        labels: what is measured; added to each row, and shown on standard error with it.
    """
    command = [sys.executable, "-W", "ignore", "-m", module, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            row = {**labels, **json.loads(line), "load": os.getloadavg()[0]}
            print(row, file=sys.stderr, flush=True)
            yield row


def synchronized_seconds() -> float:
    """Read the wall clock in seconds, once the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def status_gib(field: str) -> float:
    """Read a field of this process's status (Linux) in GiB, such as `VmRSS`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 2**20


class MemoryPeak:
    """Measures the most memory that this process holds beyond what it held at first (Linux)."""

    def __init__(self) -> None:
        self.before = status_gib("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")

    def gib(self) -> float:
        """Return the peak so far."""
        return status_gib("VmHWM") - self.before
