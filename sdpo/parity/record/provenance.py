"""Says what a recording was made with: commit, changes, versions, processor and kernels."""

import hashlib
import os
import platform
from datetime import UTC, datetime
from importlib import metadata

import torch

from sdpo.parity.live_fork.checkout import Checkout
from sdpo.parity.record.launch import KERNELS
from sdpo.parity.report.environment import processor

PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "safetensors")


def provenance(checkout: Checkout) -> dict[str, object]:
    """The provenance of a manifest, in the form of the packaged ones."""
    state: dict[str, object] = {}
    if checkout.changed:
        digest = hashlib.sha256(checkout.diff.encode()).hexdigest()
        state = {"modified": list(checkout.changed), "diff_sha256": digest}
    return {
        "reference_repository": "lasgroup/SDPO",
        "reference_commit": checkout.commit,
        **state,
        **{name: metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "device": "cpu",
        "torch_num_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "processor": processor(),
        "kernels": {name: os.environ.get(name, "") for name in KERNELS},
        "recorded": datetime.now(UTC).date().isoformat(),
    }
