"""Finds the checkpoint that a run continues from: the latest one that was written to its end.

After the trainer has written a checkpoint, `seal` adds a file with the size of every other one.
A checkpoint without it, or with a file that does not fit, was cut off by a kill and is removed.
"""

import shutil
from pathlib import Path

from sdpo.benchmark.runs.records import read_json, write_json

_SEAL = "complete.json"


def folder_of(parent: Path, step: int) -> Path:
    """Return the folder of the checkpoint after a step."""
    return parent / f"checkpoint-{step}"


def seal(folder: Path) -> None:
    """Mark a checkpoint as complete."""
    write_json(folder / _SEAL, {"files": _sizes(folder)})


def _sizes(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(_SEAL)
    }


def _is_complete(folder: Path) -> bool:
    """Tell whether every file is there as it was sealed."""
    sealed = read_json(folder / _SEAL)
    return sealed is not None and sealed["files"] == _sizes(folder)


def latest(parent: Path) -> tuple[Path | None, int]:
    """Find the latest complete checkpoint and its step; removes those that are not complete.

    Returns:
        None and step 0 where there is none.
    """
    complete: dict[int, Path] = {}
    for folder in parent.glob("checkpoint-*"):
        if _is_complete(folder):
            complete[int(folder.name.rpartition("-")[2])] = folder
        else:
            shutil.rmtree(folder)
    step = max(complete, default=0)
    return complete.get(step), step
