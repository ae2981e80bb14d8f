"""What an audit ran on and with: versions, machine, determinism, golden data."""

import hashlib
import platform
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sdpo.fixtures import GoldenFamily
from sdpo.parity.truth import tolerances
from sdpo.settings.version import __version__


def describe_environment(settings: dict[str, Any], seeds: tuple[int, ...]) -> dict[str, Any]:
    """Versions, machine, what was set for determinism, and all tolerances."""
    return {
        "sdpo": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": f"{sys.platform}-{platform.machine()}",
        "processor": processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "determinism": settings,
        "candidate_seeds": list(seeds),
        "tolerances": tolerances.recorded(),
    }


def processor() -> str:
    """The processor's model where Linux tells it, else its architecture."""
    file = Path("/proc/cpuinfo")
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else platform.machine()


def fingerprint(family: GoldenFamily) -> dict[str, Any]:
    """Which golden data were used."""
    manifest = (family.folder / "cases.json").read_bytes()
    return {
        "family": family.name,
        "cases": len(family),
        "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
        "reference_commit": family.manifest.get("provenance", {}).get("reference_commit"),
    }
