"""Starts the process that records: what it is asked for, and the kernels that it runs with.

MKL takes other kernels for elementwise functions on other makes of processors. With `KERNELS` set
before torch is loaded they are those that the packaged data were recorded with, so that losses and
prompts are the same to the bit on any processor with AVX2; matrix products are not.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import msgspec

KERNELS = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OMP_NUM_THREADS": "1",
}


def with_kernels(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of a process that records."""
    return {**environment, **KERNELS}


@dataclass(frozen=True)
class Order:
    """What the command was asked for.

    Attributes:
        checkout: the fork's folder.
        cases: the list of cases.
        out: folder of the recording, empty to check the packaged cases.
        regenerate: replace a recording that differs.
        allow_modified: record from a modified checkout, or another commit, too.
        random: how many random cases of each family to compare, 0 for none.
        seed: of the first random case.
    """

    checkout: str
    cases: str
    out: str = ""
    regenerate: bool = False
    allow_modified: bool = False
    random: int = 0
    seed: int = 0


def packaged_list() -> Path:
    """The list of the packaged supplement."""
    return Path(str(files("sdpo.fixtures") / "supplement.toml"))


def carry_out(order: Order) -> int:
    """Carry an order out in a process of its own; the exit code is that of the command."""
    command = [sys.executable, "-m", "sdpo.parity.record.worker"]
    text = msgspec.json.encode(order).decode()
    return subprocess.run(
        [*command, text], env=with_kernels(os.environ), stdin=subprocess.DEVNULL, check=False
    ).returncode
