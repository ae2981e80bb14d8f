"""The append-only history of audits: one JSON line for each run, for `sdpo trend`."""

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

VERSION = 1
VERSIONS = ("sdpo", "python", "torch", "numpy", "platform", "processor", "cpu_capability")
NAMES_OF_COMMIT = ("GITHUB_SHA", "CI_COMMIT_SHA")


class HistoryError(Exception):
    """A history that cannot be read or written; the message says why."""


def line_of(run: Mapping[str, Any]) -> dict[str, Any]:
    """What the history keeps of a RUN document: use of the budgets, and all that is a tolerance."""
    environment, rows = run["environment"], run["stages"]
    numeric = [row for row in rows if row["budget_used"] is not None]
    commit = next((os.environ[n] for n in NAMES_OF_COMMIT if os.environ.get(n)), "")
    return {
        "schema_version": VERSION,
        "created": run["created"],
        "commit": commit,
        "candidate": run["candidate"],
        "verdict": run["verdict"],
        "first_stage": run["first_stage"],
        "covered": run["coverage"]["covered"],
        "budget_used": {row["name"]: row["budget_used"] for row in numeric},
        "smallest_detectable": run["sensitivity"]["smallest_detectable"],
        "tolerances": environment.get("tolerances", {}),
        "policy": run["policy"],
        "declared": {
            entry["id"]: {name: entry[name] for name in ("range", "expires", "stages", "cases")}
            for entry in run["declared"]
        },
        "goldens": {g["family"]: g["manifest_sha256"] for g in environment.get("goldens", [])},
        "environment": {name: environment.get(name) for name in VERSIONS},
    }


def append(path: Path, run: Mapping[str, Any]) -> None:
    """Add the line of a run. Several processes may do so at a time; nothing is ever rewritten.

    Raises:
        HistoryError: the file cannot be written.
    """
    data = (json.dumps(line_of(run), ensure_ascii=False) + "\n").encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(size - 1)
                # an earlier writer was killed in the middle of its line: ours stays whole
                data = data if file.read(1) == b"\n" else b"\n" + data
            file.write(data)
    except OSError as error:
        raise HistoryError(f"cannot write to {path}: {error.strerror}") from error


def read(path: Path) -> list[dict[str, Any]]:
    """All lines, oldest first.

    Raises:
        HistoryError: unreadable, empty, or a line that is none of ours.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise HistoryError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise HistoryError(f"{path} is not UTF-8: {error}") from error
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise HistoryError(f"{path}, line {number}: not JSON: {error}") from error
        if not isinstance(row, dict) or row.keys() != KEYS or row["schema_version"] != VERSION:
            raise HistoryError(f"{path}, line {number}: not a line of `sdpo audit --history`")
        found.append(row)
    if not found:
        raise HistoryError(f"{path} is empty: `sdpo audit --history {path}` adds lines")
    return found


KEYS = {
    "schema_version",
    "created",
    "commit",
    "candidate",
    "verdict",
    "first_stage",
    "covered",
    "budget_used",
    "smallest_detectable",
    "tolerances",
    "policy",
    "declared",
    "goldens",
    "environment",
}
