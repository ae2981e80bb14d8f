"""Environments of Python with given packages, cached: what they hold is their key.

An environment counts only with the file that is written last, so that one whose making was
interrupted is made anew.
"""

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sdpo.runtime.atomic_write import write_atomically

COMPLETE = "complete.json"
_PYTHON = Path("bin", "python")
LIMIT = 1800
"""Seconds that installing may take."""
LONGEST_NOTE = 400


class InstallError(Exception):
    """The packages cannot be installed; the message says in one line why."""


@dataclass(frozen=True)
class Environment:
    """An environment in its folder."""

    folder: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / _PYTHON

    def versions(self, names: Iterable[str]) -> dict[str, str]:
        """Read the versions of those of some distributions that are installed in it."""
        paths = [str(path) for path in (self.folder / "lib").glob("python*/site-packages")]
        found: dict[str, str] = {}
        for name in filter(None, names):
            for distribution in importlib.metadata.distributions(name=name, path=paths):
                found[name] = distribution.version
        return found


def environment_of(requirements: Sequence[str], cache: Path) -> Environment:
    """Take the environment with some packages from the cache, or make it.

    Args:
        requirements: as pip takes them.
        cache: folder of all environments.

    Raises:
        InstallError: they cannot be installed.
        OSError: the cache cannot be written.
    """
    wanted = {"python": [*sys.version_info[:3]], "requirements": sorted(requirements)}
    make = lambda folder: _make(Environment(folder), requirements)  # noqa: E731
    return Environment(_kept(wanted, cache, make, _PYTHON))


def folder_of(requirements: Sequence[str], cache: Path) -> Path:
    """Take a folder for PYTHONPATH with some packages, without what they need, or make it.

    Args:
        requirements: as pip takes them; all that is wanted, as nothing else is installed.
        cache: folder of all such folders.

    Raises:
        InstallError: they cannot be installed.
        OSError: the cache cannot be written.
    """
    wanted = {"python": [*sys.version_info[:3]], "alone": sorted(requirements)}
    return _kept(wanted, cache, lambda folder: _install_alone(folder, requirements))


def _kept(
    wanted: Mapping[str, object], cache: Path, make: Callable[[Path], None], needed: Path = Path()
) -> Path:
    """Take what is wanted from the cache, or make it; it counts with the file `needed` only."""
    text = json.dumps(wanted, indent=1)
    folder = cache / hashlib.sha256(text.encode()).hexdigest()[:16]
    complete = folder / COMPLETE
    with _alone(folder):
        if not (complete.exists() and (folder / needed).exists()):
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            write_atomically(complete, text)
    return folder


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process makes the environment in a folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(environment: Environment, requirements: Sequence[str]) -> None:
    """Make an environment and install packages into it; uv shares their files where it is there.

    Raises:
        InstallError: one of the commands failed; nothing stays.
    """
    folder, python = str(environment.folder), str(environment.python)
    if uv := uv_command():
        make = [*uv, "venv", "--quiet", "--python", sys.executable, folder]
        install = [*uv, "pip", "install", "--quiet", "--python", python]
    else:
        make = [sys.executable, "-m", "venv", folder]
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    try:
        _run(make)
        if requirements:
            _run([*install, *requirements])
    except BaseException:
        shutil.rmtree(environment.folder, ignore_errors=True)
        raise


def _install_alone(folder: Path, requirements: Sequence[str]) -> None:
    """Install packages into a folder, by this interpreter and without what they depend on.

    Raises:
        InstallError: it failed; nothing stays.
    """
    install = [*uv_command(), "pip"] if uv_command() else [sys.executable, "-m", "pip"]
    try:
        _run([*install, "install", "--quiet", "--no-deps", "--target", str(folder), *requirements])
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _run(command: Sequence[str]) -> None:
    """Run a command that makes an environment.

    Raises:
        InstallError: it failed, or took too long.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT, check=False, env=plain()
        )
    except subprocess.TimeoutExpired:
        raise InstallError(f"installing took more than {LIMIT} s") from None
    if done.returncode:
        raise InstallError(_reason(done.stderr) or f"{command[0]} ended with {done.returncode}")


def _reason(said: str) -> str:
    """What an installer complains of, in one line without its drawing."""
    lines = [line.strip(" ×╰├─▶│") for line in said.splitlines()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    kept = errors or [line for line in lines if line and not line.startswith("WARNING")]
    text = " ".join(" ".join(kept).split())
    return text if len(text) <= LONGEST_NOTE else f"{text[: LONGEST_NOTE - 1]}…"


def uv_command() -> list[str]:
    """The command that runs uv; empty without one."""
    if executable := shutil.which("uv"):
        return [executable]
    return [sys.executable, "-m", "uv"] if importlib.util.find_spec("uv") else []


def plain() -> Mapping[str, str]:
    """The variables of this process without those that would point at its own environment."""
    ours = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "UV_PROJECT_ENVIRONMENT")
    return {name: value for name, value in os.environ.items() if name not in ours}
