"""Defines a case (a completion and its tests) and its result."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

Status = Literal["pass", "fail", "error", "timeout"]


class CaseError(ValueError):
    """An input that is not a case; the message names the field, the value and the rule."""


@dataclasses.dataclass(frozen=True)
class Case:
    """Holds a completion to be scored, and its tests.

    `test_imports` and `test_setup_code` are source code; the first runs before the submission, the
    second after it. `id` is any JSON value and is handed through.
    """

    id: Any
    completion: str
    test_list: tuple[str, ...]
    test_imports: str = ""
    test_setup_code: str = ""

    @classmethod
    def from_record(cls, record: object) -> "Case":
        """Read the fields of an input line; unknown ones are ignored.

        Raises:
            CaseError: if a field is missing or of another type.
        """
        if not isinstance(record, Mapping):
            raise CaseError(f"expected an object, found {_kind(record)}")
        if "completion" not in record:
            raise CaseError('"completion" is missing')
        completion = record["completion"]
        if not isinstance(completion, str):
            raise CaseError(f'"completion" must be a string, found {_kind(completion)}')
        if "test_list" not in record:
            raise CaseError('"test_list" is missing')
        return cls(
            id=record.get("id"),
            completion=completion,
            test_list=_texts(record["test_list"], "test_list"),
            test_imports=source(record.get("test_imports"), "test_imports"),
            test_setup_code=source(record.get("test_setup_code"), "test_setup_code"),
        )


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), "a number")


def _texts(value: object, name: str) -> tuple[str, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise CaseError(f'"{name}" must be a list of strings, found {_kind(value)}')
    for text in value:
        if not isinstance(text, str):
            raise CaseError(f'"{name}" must hold strings only, found {_kind(text)}')
    return tuple(value)


def source(value: object, name: str) -> str:
    """Source code given as nothing, one text or a list of lines; raises `CaseError`."""
    if value is None or isinstance(value, str):
        return (value or "").replace("\r\n", "\n")
    return "\n".join(_texts(value, name)).replace("\r\n", "\n")


class ResultLine(TypedDict):
    """Makes the output line of a case."""

    id: object
    status: Status
    passed: int
    total: int
    feedback: str
    seconds: float
    isolation: list[str]


@dataclasses.dataclass(frozen=True)
class Result:
    """Gives the verdict on a case.

    `status`: `pass` (every test held, and there is one), `timeout` (a test ran into the limit),
    `error` (nothing could be judged: no code, it does not compile, raised while it was defined,
    lacks the function, or no test can be evaluated), `fail` (anything else). `passed` counts single
    tests whatever the status. `feedback` is empty where all passed. `seconds` is wall time.
    """

    status: Status
    passed: int
    total: int
    feedback: str
    seconds: float
    isolation: tuple[str, ...]

    def record(self, id: object) -> ResultLine:
        """Write the output line for a case."""
        return {
            "id": id,
            "status": self.status,
            "passed": self.passed,
            "total": self.total,
            "feedback": self.feedback,
            "seconds": round(self.seconds, 3),
            "isolation": list(self.isolation),
        }
