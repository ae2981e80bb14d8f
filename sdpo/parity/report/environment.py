"""What an audit ran on and with: versions, machine, determinism, golden data."""

import hashlib
import platform
import re
import sys
from pathlib import Path

import numpy as np
import torch

from sdpo.fixtures import GoldenFamily
from sdpo.parity.report.report_context import Environment, GoldenRow
from sdpo.parity.truth import tolerances
from sdpo.settings.determinism import DeterminismSettings
from sdpo.settings.version import __version__


def describe_environment(settings: DeterminismSettings, seeds: tuple[int, ...]) -> Environment:
    """Collect versions, machine, what was set for determinism, and all tolerances."""
    return Environment(
        sdpo=__version__,
        python=platform.python_version(),
        torch=str(torch.__version__),
        numpy=np.__version__,
        platform=f"{sys.platform}-{platform.machine()}",
        processor=processor(),
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        determinism=dict(settings),
        candidate_seeds=list(seeds),
        tolerances=dict(tolerances.recorded()),
    )


def processor() -> str:
    """The processor's model where Linux tells it, else its architecture."""
    file = Path("/proc/cpuinfo")
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else platform.machine()


def fingerprints(family: GoldenFamily) -> list[GoldenRow]:
    """Which golden data were used: a row for each recording of a family."""
    return [
        GoldenRow(
            part.name,
            len(part.manifest["cases"]),
            hashlib.sha256((part.folder / "cases.json").read_bytes()).hexdigest(),
            part.manifest.get("provenance", {}).get("reference_commit"),
        )
        for part in family.recordings()
    ]
