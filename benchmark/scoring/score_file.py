"""Scores a file of cases: one output line per case, in order, whatever happens; resumable."""

import collections
import concurrent.futures
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any

from sdpo.benchmark.problems.case import Case, CaseError, Result
from sdpo.benchmark.scoring.executor import Executor
from sdpo.benchmark.scoring.feedback import printable, shorten

# Cases read ahead per worker, so that a slow case does not hold up the others. Each is held in
# memory until its line is written.
_CASES_AHEAD = 64
_MAX_REASON = 300


class RunError(RuntimeError):
    """Input or output that makes a run impossible; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Line:
    """Holds a case of the input, or why it is not one; `digest` identifies it."""

    number: int
    id: Any
    case: Case | None
    problem: str
    digest: str


def read_cases(path: Path) -> Iterator[Line]:
    """Read the cases of a JSON lines file; blank lines are no cases.

    Raises:
        RunError: If the file cannot be read.
    """
    return (_line(number, raw) for number, raw in _numbered_lines(path))


def count_cases(path: Path) -> int:
    """Count the cases in the file; raises `RunError` if it cannot be read."""
    return sum(1 for _ in _numbered_lines(path))


def _numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            yield from ((number, raw) for number, raw in enumerate(file, 1) if raw.strip())
    except OSError as error:
        raise RunError(f"cannot read the cases in {path}: {error.strerror}") from error


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _line(number: int, raw: bytes) -> Line:
    digest = hashlib.sha256(raw.strip()).hexdigest()[:16]
    identity = None
    try:
        record = json.loads(raw.decode("utf-8-sig"), parse_constant=_reject_constant)
        if isinstance(record, dict):
            identity = record.get("id")
        return Line(number, identity, Case.from_record(record), "", digest)
    except CaseError as error:
        reason = str(error)
    except (ValueError, RecursionError) as error:
        reason = f"not valid JSON in UTF-8: {error}"
    reason = shorten(printable(reason), _MAX_REASON)
    return Line(number, identity, None, f"line {number}: {reason}", digest)


def finished_lines(out: Path, cases: Path) -> tuple[int, int]:
    """Find how much of an earlier run's output is there.

    Args:
        out: The output of an earlier run, possibly cut off in its last line; may be missing.
        cases: The input.

    Returns:
        Number of finished cases, and of bytes that hold them.

    Raises:
        RunError: If the output belongs to other cases, or cannot be read.
    """
    if not out.is_file():
        return 0, 0
    finished = size = 0
    lines = read_cases(cases)
    try:
        file = out.open("rb")
    except OSError as error:
        raise RunError(f"cannot read {out} to continue it: {error.strerror}") from error
    with file:
        for raw in file:
            digest = _digest(raw)
            if digest is None:
                break
            line = next(lines, None)
            if line is None or line.digest != digest:
                raise RunError(
                    f"{out} holds results of other cases (its line {finished + 1} does not belong "
                    f"to {cases}); give another --out, or --overwrite to discard it"
                )
            finished += 1
            size += len(raw)
    return finished, size


def _digest(raw: bytes) -> str | None:
    """Read the digest in an output line; `None` for an incomplete one."""
    if not raw.endswith(b"\n"):
        return None
    try:
        record = json.loads(raw)
    except ValueError:
        return None
    return record.get("case_sha256", "") if isinstance(record, dict) else ""


def open_output(out: Path, keep: int) -> FileIO:
    """Open the output after the first `keep` bytes; raises `RunError` if it is not writable."""
    try:
        file = FileIO(out, "r+" if keep else "w")
        if keep:
            file.truncate(keep)
            file.seek(keep)
    except OSError as error:
        raise RunError(f"cannot write {out}: {error.strerror}") from error
    return file


def _write(output: FileIO, data: bytes) -> None:
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[output.write(rest) :]
    except OSError as error:
        raise RunError(f"cannot write {output.name}: {error.strerror}") from error


def run(
    executor: Executor,
    lines: Iterator[Line],
    output: FileIO,
    progress: Callable[[Result], None] = lambda result: None,
) -> collections.Counter[str]:
    """Score cases and write a line for each as soon as it and all before it are finished.

    Args:
        executor: Does the scoring.
        lines: The cases.
        output: Where the lines go, unbuffered.
        progress: Called after each line.

    Returns:
        How often each status occurred.

    Raises:
        RunError: If the output cannot be written.
    """
    window: collections.deque[tuple[Line, concurrent.futures.Future[Result]]] = collections.deque()
    counts: collections.Counter[str] = collections.Counter()

    def write_first() -> None:
        line, future = window.popleft()
        result = future.result()
        record = {**result.record(line.id), "case_sha256": line.digest}
        _write(output, json.dumps(record).encode() + b"\n")
        counts[result.status] += 1
        progress(result)

    ahead = _CASES_AHEAD * executor.workers
    for line in lines:
        window.append((line, _submit(executor, line)))
        while window and (len(window) >= ahead or window[0][1].done()):
            write_first()
    while window:
        write_first()
    return counts


def _submit(executor: Executor, line: Line) -> "concurrent.futures.Future[Result]":
    if line.case is not None:
        return executor.submit(line.case)
    future: concurrent.futures.Future[Result] = concurrent.futures.Future()
    future.set_result(Result("error", 0, 0, line.problem, 0.0, executor.isolation))
    return future
