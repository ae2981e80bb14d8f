"""Records of a run: append-only JSON lines that survive a kill, and files that are replaced whole.

Each row has a `step`. What depends on the clock or the machine (`cost.jsonl`) is kept apart from
what must be the same in every repetition.
"""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sdpo.runtime.atomic_write import write_atomically

FILES = ("steps", "parity", "cost", "evals", "samples")


class Records:
    """The record files of a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, name: str) -> Path:
        """The file of a kind of record."""
        return self.folder / f"{name}.jsonl"

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """Write one row at the end, and flush it."""
        with self.path(name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(plain(row), ensure_ascii=False, allow_nan=False) + "\n")
            file.flush()

    def read(self, name: str) -> list[dict[str, Any]]:
        """All rows of a kind; a line that was cut off by a kill ends them."""
        if not self.path(name).is_file():
            return []
        rows = []
        for line in self.path(name).read_bytes().split(b"\n")[:-1]:
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
        return rows

    def truncate(self, step: int) -> None:
        """Drop every row of a later step, and what a kill left unfinished."""
        for name in FILES:
            if self.path(name).is_file():
                rows = [row for row in self.read(name) if row["step"] <= step]
                text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                write_atomically(self.path(name), text)


def plain(value: Any) -> Any:
    """A value that JSON can hold: numbers that are not finite become texts."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file."""
    write_atomically(path, json.dumps(plain(value), indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Content of a JSON file; None if there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


class BusyError(RuntimeError):
    """Another process works in the folder."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder; the lock ends with the process, however it ends.

    Raises:
        BusyError: another process holds it.
    """
    import fcntl

    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(
                f"another run works in {folder}; wait for it, or use another --out"
            ) from None
        yield
