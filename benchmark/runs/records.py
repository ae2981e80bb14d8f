"""Records of a run: append-only JSON lines that survive a kill, and files that are replaced whole.

Each row has a `step`. What depends on the clock or the machine (`cost.jsonl`) is kept apart from
what must be the same in every repetition.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, Literal, TypedDict, TypeVar

from sdpo.benchmark.problems.dataset import DataStamp
from sdpo.benchmark.runs.environment import RunEnvironment
from sdpo.benchmark.scoring.pass_at_1 import PassAt1, Scored, Summary
from sdpo.runtime.atomic_write import write_atomically
from sdpo.runtime.json_values import json_safe
from sdpo.settings.determinism import DeterminismSettings

Metrics = dict[str, float]
"""Numbers by name, `step` among them; in a file those that are not finite are texts."""
Row = TypeVar("Row", bound=Mapping[str, object])


class Evaluation(Summary):
    """Makes a row of `evals.jsonl`: pass@1 after a step, and the results behind it."""

    step: int
    results: list[Scored]


class Sample(TypedDict):
    """Makes a row of `samples.jsonl`: an attempt, and the help that its teacher had."""

    step: int
    prompt: list[dict[str, str]]
    completion: str
    reward: float
    feedback: str | None
    teacher_prompt: str
    help: Literal["demonstration", "feedback", "none"]


class RunFacts(TypedDict):
    """Makes the content of `run.json`: what a run was made with."""

    settings: dict[str, Any]
    digest: str
    data: DataStamp
    isolation: list[str]
    determinism: DeterminismSettings
    environment: RunEnvironment


class RunSummary(TypedDict):
    """Makes the content of `summary.json`: how a finished run came out."""

    method: str
    seed: int
    steps: int
    first: PassAt1
    last: PassAt1
    training_seconds: float
    weights_sha256: str


class RecordFile(Generic[Row]):
    """Reads and appends rows of a file of JSON lines."""

    def __init__(self, path: Path):
        self.path = path

    def append(self, row: Row) -> None:
        """Write one row at the end, and flush it."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(row))
            file.flush()

    def read(self) -> list[Row]:
        """Return all rows; a line that was cut off by a kill ends them."""
        if not self.path.is_file():
            return []
        rows: list[Row] = []
        for line in self.path.read_bytes().split(b"\n")[:-1]:
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
        return rows

    def truncate(self, step: int) -> None:
        """Drop every row of a later step, and what a kill left unfinished."""
        if self.path.is_file():
            rows: list[Any] = self.read()
            kept = (_line(row) for row in rows if row["step"] <= step)
            write_atomically(self.path, "".join(kept))


def _line(row: Mapping[str, object]) -> str:
    return json.dumps(json_safe(row), ensure_ascii=False, allow_nan=False) + "\n"


class Records:
    """Names the record files of a run's folder."""

    def __init__(self, folder: Path):
        self.steps = RecordFile[Metrics](folder / "steps.jsonl")
        self.parity = RecordFile[Metrics](folder / "parity.jsonl")
        self.cost = RecordFile[Metrics](folder / "cost.jsonl")
        self.evals = RecordFile[Evaluation](folder / "evals.jsonl")
        self.samples = RecordFile[Sample](folder / "samples.jsonl")

    def repeatable(self) -> list[RecordFile[Any]]:
        """List the files that every repetition of a run writes alike."""
        return [self.steps, self.parity, self.evals, self.samples]

    def truncate(self, step: int) -> None:
        """Drop every row of a later step in all files, and what a kill left unfinished."""
        for file in (*self.repeatable(), self.cost):
            file.truncate(step)


def write_json(path: Path, value: object) -> None:
    """Replace a JSON file."""
    write_atomically(path, json.dumps(json_safe(value), indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; None if there is none."""
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
