"""Describes what a run was made with: versions, commit, machine."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import TypedDict

_PACKAGES = (
    "sdpo",
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "bitsandbytes",
    "vllm",
    "sdpo-rl",
)


class RunEnvironment(TypedDict):
    """Versions, commit and machine of a run, without names or paths of the machine."""

    packages: dict[str, str]
    git_commit: str | None
    machine: str
    cpu_capability: str
    processors: int | None
    gpus: list[str]


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _git_commit() -> str | None:
    """Ask git for the commit of the checkout that this is imported from, `+` if it was changed."""
    here = Path(__file__).resolve().parent
    if shutil.which("git") is None:
        return None

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(here), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no")
    return None if commit is None else commit + ("+" if changed else "")


def describe() -> RunEnvironment:
    """Describe versions, commit and machine."""
    import torch

    return {
        "packages": _versions(),
        "git_commit": _git_commit(),
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "processors": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def peak_memory_mib() -> float:
    """Return the greatest memory in MiB so far: of the GPU if there is one, else of the process."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
