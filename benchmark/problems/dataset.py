"""Loads MBPP problems: the full (974) and the sanitized (427) set, as published.

Source: Austin et al. 2021, https://arxiv.org/abs/2108.07732; CC-BY 4.0. The sets differ in their
fields; `Problem` has the union. Splits are by task id in both.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypedDict

from sdpo.benchmark.problems.case import CaseError, source

HUB_NAME = "google-research-datasets/mbpp"
CONFIGURATIONS = ("full", "sanitized")
# First and last task id of each split.
SPLITS = {"prompt": (1, 10), "test": (11, 510), "validation": (511, 600), "train": (601, 974)}


class DataError(ValueError):
    """A data set that is missing or malformed."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """Holds a task in words (`text`), its reference solution (`code`) and its tests.

    `test_imports` runs before the solution, `test_setup_code` after it.
    """

    task_id: int
    text: str
    code: str
    test_list: tuple[str, ...]
    challenge_test_list: tuple[str, ...] = ()
    test_imports: str = ""
    test_setup_code: str = ""

    @property
    def split(self) -> str | None:
        """Name the split; `None` for an id outside all of them."""
        for name, (first, last) in SPLITS.items():
            if first <= self.task_id <= last:
                return name
        return None


class DataStamp(TypedDict):
    """Says in a result which problems it is about."""

    data_sha256: str
    split: str | None
    origin: str


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Holds problems with their origin.

    `split` is `None` where all splits are included.
    """

    problems: tuple[Problem, ...]
    sha256: str
    origin: str
    split: str | None = None

    def only(self, split: str) -> "Dataset":
        """Keep the problems of one split.

        Raises:
            DataError: if there is no such split, or it holds no problem here.
        """
        if split not in SPLITS:
            raise DataError(f"no split {split!r}; there are {', '.join(SPLITS)}")
        problems = tuple(problem for problem in self.problems if problem.split == split)
        if not problems:
            raise DataError(f"split {split!r} holds no problem of {self.origin}")
        return dataclasses.replace(self, problems=problems, split=split)

    @property
    def stamp(self) -> DataStamp:
        """Say what identifies the data in a result."""
        return {"data_sha256": self.sha256, "split": self.split, "origin": self.origin}


def _problem(record: object, location: str) -> Problem:
    if not isinstance(record, Mapping):
        raise DataError(f"{location}: expected an object")
    missing = [name for name in ("task_id", "code", "test_list") if name not in record]
    if missing:
        raise DataError(f"{location}: {', '.join(missing)} missing; is this an MBPP file?")
    try:
        return Problem(
            task_id=int(record["task_id"]),
            text=str(record.get("text") or record.get("prompt") or ""),
            code=source(record["code"], "code"),
            test_list=tuple(map(str, record["test_list"])),
            challenge_test_list=tuple(map(str, record.get("challenge_test_list") or ())),
            test_imports=source(record.get("test_imports"), "test_imports"),
            test_setup_code=source(record.get("test_setup_code"), "test_setup_code"),
        )
    except (CaseError, TypeError, ValueError) as error:
        raise DataError(f"{location}: {error}") from error


def load_file(path: Path) -> Dataset:
    """Read a published file: JSON (a list) or JSON lines.

    Raises:
        DataError: if it cannot be read or is malformed, with the line where that is known.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    records = _records(content, path)
    problems = tuple(
        _problem(record, f"{path}, problem {i}") for i, record in enumerate(records, 1)
    )
    if not problems:
        raise DataError(f"{path} holds no problems")
    return Dataset(problems, hashlib.sha256(content).hexdigest(), str(path.name))


def _records(content: bytes, path: Path) -> list[Any]:
    try:
        text = content.decode()
        if text.lstrip().startswith("["):
            return json.loads(text)
        return [
            _parse_line(line, f"{path}, line {i}")
            for i, line in enumerate(text.splitlines(), 1)
            if line.strip()
        ]
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is neither JSON nor JSON lines: {error}") from error


def _parse_line(line: str, location: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{location}: {error}") from error


def load_hub(configuration: str = "sanitized") -> Dataset:
    """Load a set from the hub (or its local cache), all splits together.

    The hash is over the problems' canonical JSON, because the hub's files are in another format.

    Raises:
        DataError: if `datasets` is not installed or the set cannot be had.
    """
    if configuration not in CONFIGURATIONS:
        raise DataError(f"no configuration {configuration!r}; use {' or '.join(CONFIGURATIONS)}")
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            "loading from the hub needs `datasets`: pip install 'sdpo[train]', or give --data FILE"
        ) from error
    try:
        splits = datasets.load_dataset(HUB_NAME, configuration)
    except Exception as error:
        # `datasets` raises many kinds of exception, depending on what is out of reach.
        reason = str(error).split("\n")[0][:200]
        raise DataError(
            f"cannot load {HUB_NAME} ({configuration}) from the hub: {type(error).__name__}: "
            f"{reason}; give --data FILE with the published mbpp.jsonl or sanitized-mbpp.json"
        ) from error
    rows: Iterable[Any] = [row for name in splits for row in splits[name]]  # pyright: ignore
    problems = tuple(
        sorted((_problem(row, HUB_NAME) for row in rows), key=lambda problem: problem.task_id)
    )
    canonical = json.dumps([dataclasses.asdict(p) for p in problems], sort_keys=True)
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    return Dataset(problems, digest, f"{HUB_NAME}/{configuration}")
