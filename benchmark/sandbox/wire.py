"""Sends messages over a socket: four bytes of length, then JSON in ASCII. The confined end."""

import json
import os
import struct
from typing import Any, NotRequired, TypedDict, final

from sdpo.benchmark.sandbox.exceptions import Description
from sdpo.benchmark.sandbox.values import Encoded

HEADER = struct.Struct("!I")
# The longest value a test may return, encoded. Far above any honest answer.
MAX_FRAME = 8 << 20
CHUNK = 1 << 16
# The fork server's answer on the control socket at the end of a run without a problem.
ENDED = b"ended"
_encode = json.JSONEncoder(separators=(",", ":")).encode
_decode = json.JSONDecoder().decode


class Submission(TypedDict):
    """Holds what the process of a submission sees before the first request.

    `names` are those that the tests call.
    """

    code: str
    imports: str
    setup: str
    names: list[str]


@final
class Evaluation(TypedDict):
    """Asks for an expression's value, with `bindings` in place of the submission's own names.

    The tests process gives the expression by its index in the plan, and no `number`.
    """

    expression: str | int
    bindings: dict[str, Encoded]
    number: NotRequired[int]


@final
class Operation(TypedDict):
    """Asks for one of the submission process's operations on values that it kept."""

    operation: str
    arguments: list[Encoded]
    number: NotRequired[int]


Request = Evaluation | Operation


class Reply(TypedDict):
    """Answers a request; `changed` has the bound containers as the evaluation left them."""

    number: NotRequired[int]
    value: NotRequired[Encoded]
    changed: NotRequired[dict[str, Encoded]]
    error: NotRequired[Description]


class PlannedTest(TypedDict):
    """Gives the tests process a test: its rewritten source, and what it needs before."""

    modules: list[str]
    imports: str
    setup: str
    program: str


class Report(TypedDict):
    """Says what became of a test in the tests process.

    `checks` counts the asserts that held, `sides` are those of a comparison that did not. `error`
    is the exception that ended the test, in its set-up or in itself.
    """

    ok: bool
    checks: int
    sides: tuple[str, str] | None
    error: Description | None
    in_setup: bool
    raised_by_submission: bool


def pack(message: object) -> bytes:
    """Encode a message as one frame."""
    payload = _encode(message).encode("ascii")
    return HEADER.pack(len(payload)) + payload


def unpack(payload: bytearray) -> object:
    """Decode what follows the length.

    Raises:
        ValueError: If it is not JSON in ASCII.
        RecursionError: If it is nested too deep.
    """
    return _decode(payload.decode("ascii"))


class Pipe:
    """Sends and receives at the confined end: blocking, on a bare descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._buffer = bytearray()

    def send(self, message: object) -> None:
        """Send a frame; raises `OSError` if the harness is gone."""
        rest = memoryview(pack(message))
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

    def receive(self) -> Any:
        """Receive a message; raises `EOFError` if the harness is gone."""
        size = HEADER.unpack(self._exactly(HEADER.size))[0]
        return unpack(self._exactly(size))

    def _exactly(self, size: int) -> bytearray:
        while len(self._buffer) < size:
            self._fill()
        result = self._buffer[:size]
        del self._buffer[:size]
        return result

    def _fill(self) -> None:
        part = os.read(self._descriptor, CHUNK)
        if not part:
            raise EOFError("the harness is gone")
        self._buffer += part
