"""Commits of a checkout: which there are, and a clone of each; the checkout is only read."""

import os
import shutil
import subprocess
from pathlib import Path

from sdpo.parity.live_fork.checkout import NEEDED_FILES
from sdpo.parity.watch.environments import InstallError
from sdpo.parity.watch.upstreams import Upstream, WatchError


class _GitError(Exception):
    """A git command failed; the message is what it said."""


def commits_of(upstream: Upstream) -> dict[str, str]:
    """List the commits that a user named, with when each was made, in the order of history.

    Raises:
        WatchError: there is no such repository or commit, or a commit lacks files of the fork.
    """
    folder = Path(upstream.checkout)
    try:
        hashes = [sha for name in upstream.listed for sha in _resolved(folder, name)]
        lines = _git(folder, "log", "--no-walk=sorted", "--format=%H %cI", *hashes).splitlines()
    except _GitError as error:
        raise WatchError(f"{folder} cannot be watched: {error}") from None
    # newest first, and of equal times in the order that they were named
    dated = dict(line.split(" ", 1) for line in reversed(lines))
    for sha in dated:
        held = set(_git(folder, "ls-tree", "-r", "--name-only", sha, "--", "verl").splitlines())
        if missing := [name for name in NEEDED_FILES if name not in held]:
            raise WatchError(
                f"commit {sha[:8]} of {folder} is no whole checkout of lasgroup/SDPO, "
                f"{', '.join(missing)} missing: name commits that have all of SDPO"
            )
    return dated


def clone_of(upstream: Upstream, commit: str, cache: Path) -> Path:
    """Take the clone of a checkout at a commit from the cache, or make it.

    Raises:
        InstallError: it cannot be cloned.
        OSError: the cache cannot be written.
    """
    clone = cache / commit
    if clone.exists():
        return clone
    cache.mkdir(parents=True, exist_ok=True)
    partial = cache / f"{commit}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    source = Path(upstream.checkout).resolve()
    try:
        _git(source, "clone", "--quiet", "--shared", "--no-checkout", str(source), str(partial))
        _git(partial, "checkout", "--quiet", "--detach", commit)
    except _GitError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise InstallError(f"the commit cannot be cloned: {error}") from None
    partial.rename(clone)
    return clone


def _resolved(folder: Path, name: str) -> list[str]:
    """The commits that a name or a range `FIRST..LAST` stands for, both ends included."""
    if ".." not in name:
        return [_git(folder, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}").strip()]
    first, _, last = name.partition("..")
    inside = _git(folder, "rev-list", f"{first}..{last or 'HEAD'}").split()
    return [*inside, *_resolved(folder, first)]


def _git(folder: Path, *arguments: str) -> str:
    """What a git command prints.

    Raises:
        _GitError: it failed, or there is no git.
    """
    # a repository that a hook or another tool named is not the one that was asked for
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-c", "safe.directory=*", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=own)
    except OSError as error:
        raise _GitError(f"git cannot be run: {error.strerror}") from None
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"git {arguments[0]} knows no {arguments[-1]}"
        raise _GitError(said)
    return done.stdout
