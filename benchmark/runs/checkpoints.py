"""Which checkpoint a run continues from: the latest one that was written to its end.

After the trainer has written a checkpoint, `seal` adds a file with the size of every other one.
A checkpoint without it, or with a file that does not fit, was cut off by a kill and is removed.
"""

import shutil
from pathlib import Path

from sdpo.benchmark.runs.records import read_json, write_json

SEAL = "complete.json"


def folder_of(parent: Path, step: int) -> Path:
    """The folder of the checkpoint after a step."""
    return parent / f"checkpoint-{step}"


def seal(folder: Path) -> None:
    """Mark a checkpoint as complete."""
    write_json(folder / SEAL, {"files": sizes(folder)})


def sizes(folder: Path) -> dict[str, int]:
    """Size of each file by its relative name."""
    return {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(SEAL)
    }


def is_complete(folder: Path) -> bool:
    """Whether every file is there as it was sealed."""
    sealed = read_json(folder / SEAL)
    return sealed is not None and sealed["files"] == sizes(folder)


def latest(parent: Path) -> tuple[Path, int] | None:
    """The latest complete checkpoint and its step; removes those that are not complete."""
    found = []
    for folder in sorted(parent.glob("checkpoint-*")):
        if is_complete(folder):
            found.append((int(folder.name.rpartition("-")[2]), folder))
        else:
            shutil.rmtree(folder)
    if not found:
        return None
    step, folder = max(found)
    return folder, step
