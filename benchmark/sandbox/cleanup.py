"""Cleans up after a run: removes what a run wrote, and ends stray processes."""

import os
import signal


def empty_folder(folder: str) -> int:
    """Remove everything in a folder, however deep, named or protected.

    Folders are moved up before they are emptied, so that depth needs no recursion, long paths or
    open descriptors.

    Returns:
        Number of entries removed.
    """
    removed = 0
    moved = 0
    while entries := list(os.scandir(folder)):
        for entry in entries:
            removed += 1
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
                continue
            os.chmod(entry.path, 0o700)
            for inner in list(os.scandir(entry.path)):
                if inner.is_dir(follow_symlinks=False):
                    os.chmod(inner.path, 0o700)
                    os.rename(inner.path, os.path.join(folder, f".moved-{moved}"))
                    moved += 1
                else:
                    os.unlink(inner.path)
                    removed += 1
            os.rmdir(entry.path)
    return removed


def descendants(process: int) -> list[int]:
    """List the numbers of all processes below a process, from `/proc` where there is one."""
    if not os.path.isdir("/proc/self"):
        return []
    parents: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    parent = int(file.read().rpartition(b")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents.setdefault(parent, []).append(int(name))
    below: list[int] = []
    waiting = [process]
    while waiting:
        children = parents.get(waiting.pop(), [])
        below += children
        waiting += children
    return below


def kill_descendants() -> None:
    """Kill every process below this one, wherever it hid (the caller is their subreaper)."""
    for process in descendants(os.getpid()):
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue
