"""The append-only history of audits: one JSON line for each run, for `sdpo trend`."""

import fcntl
import json
import os
from datetime import date
from pathlib import Path
from typing import Literal, TypeVar

import msgspec
from msgspec import Struct

from sdpo.parity.report.report_context import Amount, PolicyRow
from sdpo.parity.report.report_rows import Size
from sdpo.parity.report.run_report import RunReport

_Line = TypeVar("_Line", bound=Struct)
_NAMES_OF_COMMIT = ("GITHUB_SHA", "CI_COMMIT_SHA")


class HistoryError(Exception):
    """A history that cannot be read or written; the message says why."""


class DeclaredLimits(Struct, forbid_unknown_fields=True):
    """How much a declared deviation covers."""

    range: tuple[Amount, Amount] | None
    expires: date | None
    stages: list[str]
    cases: list[str]


class Line(Struct, forbid_unknown_fields=True):
    """What the history keeps of a run: use of the budgets, and all that is a tolerance."""

    schema_version: Literal[1]
    created: str
    commit: str
    candidate: str
    verdict: str
    first_stage: str | None
    covered: list[str]
    budget_used: dict[str, Size]
    smallest_detectable: dict[str, Size]
    tolerances: dict[str, int | float]
    policy: PolicyRow
    declared: dict[str, DeclaredLimits]
    goldens: dict[str, str]
    environment: dict[str, str | None]


def line_of(run: RunReport) -> Line:
    """The line of a run."""
    environment = run.environment
    commit = next((os.environ[n] for n in _NAMES_OF_COMMIT if os.environ.get(n)), "")
    versions = ("sdpo", "python", "torch", "numpy", "platform", "processor", "cpu_capability")
    return Line(
        schema_version=1,
        created=run.created,
        commit=commit,
        candidate=run.candidate,
        verdict=run.verdict,
        first_stage=run.first_stage,
        covered=run.coverage.covered,
        budget_used={r.name: r.budget_used for r in run.stages if r.budget_used is not None},
        smallest_detectable=run.sensitivity.smallest_detectable,
        tolerances=environment.tolerances,
        policy=run.policy,
        declared={
            row.id: DeclaredLimits(row.range, row.expires, list(row.stages), list(row.cases))
            for row in run.declared
        },
        goldens={golden.family: golden.manifest_sha256 for golden in environment.goldens},
        environment={name: getattr(environment, name) or None for name in versions},
    )


def append(path: Path, run: RunReport) -> None:
    """Add the line of a run. Several processes may do so at a time; nothing is ever rewritten.

    Raises:
        HistoryError: the file cannot be written.
    """
    append_line(path, line_of(run))


def append_line(path: Path, line: Struct) -> None:
    """Add a line of any history, as `append` does.

    Raises:
        HistoryError: the file cannot be written.
    """
    data = (json.dumps(msgspec.to_builtins(line), ensure_ascii=False) + "\n").encode()
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


def read(path: Path) -> list[Line]:
    """All lines, oldest first.

    Raises:
        HistoryError: unreadable, empty, or a line that is none of ours.
    """
    lines = read_lines(path, Line, "sdpo audit --history")
    if not lines:
        raise HistoryError(f"{path} is empty: `sdpo audit --history {path}` adds lines")
    return lines


def read_lines(path: Path, kind: type[_Line], command: str) -> list[_Line]:
    """All lines of any history, oldest first.

    Args:
        path: the file.
        kind: the type of its lines.
        command: writes such lines, for the message about another one.

    Raises:
        HistoryError: unreadable, or a line of another type.
    """
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise HistoryError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise HistoryError(f"{path} is not UTF-8: {error}") from error
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            lines.append(msgspec.convert(json.loads(text), kind))
        except msgspec.ValidationError as error:
            raise HistoryError(
                f"{path}, line {number}: not a line of `{command}`: {error}"
            ) from error
        except (ValueError, RecursionError) as error:
            raise HistoryError(f"{path}, line {number}: not JSON: {error}") from error
    return lines
