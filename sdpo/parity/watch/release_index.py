"""Which releases of a package there are, as pip's configured index lists them."""

import importlib.util
import re
import subprocess
import sys
from collections.abc import Sequence

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from sdpo.parity.watch.environments import uv_command
from sdpo.parity.watch.upstreams import Upstream, WatchError

UNREACHABLE = re.compile(r"connection broken|connection to|timed out|resolve host", re.IGNORECASE)
SECONDS = 120


class IndexUnreachableError(Exception):
    """No index answers; the message says what was tried."""


def releases_of(package: str) -> list[str]:
    """List the final releases of a package that suit this Python, oldest first.

    Raises:
        WatchError: the index knows no such package.
        IndexUnreachableError: no index answers, or there is no pip to ask it.
    """
    command = [*_pip(), "index", "versions", "--disable-pip-version-check", "--retries", "1"]
    try:
        done = subprocess.run(
            [*command, package], capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise IndexUnreachableError(f"the package index gave no answer in {SECONDS} s") from None
    listed = re.search(r"^Available versions: (.+)$", done.stdout, re.MULTILINE)
    if done.returncode == 0 and listed is not None:
        return sorted((name.strip() for name in listed[1].split(",")), key=Version)
    if UNREACHABLE.search(done.stderr):
        raise IndexUnreachableError("the package index cannot be reached")
    raise WatchError(
        f"the package index knows no {package!r} for this Python: check the name, and pip's "
        "settings of the index"
    )


def _pip() -> list[str]:
    """The command that runs pip.

    Raises:
        IndexUnreachableError: there is none.
    """
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    if uv := uv_command():
        return [*uv, "tool", "run", "pip"]
    raise IndexUnreachableError("the package index cannot be asked: there is neither pip nor uv")


def chosen_releases(upstream: Upstream, available: Sequence[str], last: int | None) -> list[str]:
    """Choose those of the listed releases that lie in the range, oldest first.

    Args:
        upstream: with the range.
        available: all releases, oldest first.
        last: at most this many, the latest ones; None for all.

    Raises:
        WatchError: no release lies in the range.
    """
    inside = [name for name in available if SpecifierSet(upstream.range).contains(name)]
    if not inside:
        raise WatchError(
            f"{upstream.package}{upstream.range} matches none of its {len(available)} releases, "
            f"the latest of which is {available[-1] if available else 'none'}"
        )
    return inside[-last:] if last else inside
