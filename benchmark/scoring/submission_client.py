"""Talks to the process of one submission: sends requests ahead, and matches replies to them.

The process answers each request before it turns to the next. So both sides rarely wait for the
other, and what a call breaks cannot take back the answers before it.
"""

import collections
import dataclasses
import secrets
from collections.abc import Iterable
from typing import Literal, cast

from sdpo.benchmark.sandbox.exceptions import checked_description
from sdpo.benchmark.sandbox.peer import Peer, Timeout, WireError
from sdpo.benchmark.sandbox.wire import Reply, Request, Submission, pack
from sdpo.benchmark.scoring import feedback

# Bytes of requests sent ahead. They lie in the socket's buffer while the other side sends a reply;
# were they more than fit in, both sides would wait for the other to read.
_BYTES_AHEAD = 1 << 15
_ENDED = "The process ended before the call returned: it exited, crashed, or ran out of a limit."
_LATE = "Timeout: no result within the time limit."
_FORGED = "The submission wrote to the connection that carries its results."
_PLACES = {"imports": "test_imports: ", "setup": "test_setup_code: "}


class NoReplyError(Exception):
    """The process gave no answer that counts; `lines` say why."""

    def __init__(self, kind: Literal["fail", "error", "timeout"], *lines: str) -> None:
        super().__init__(*lines)
        self.kind: Literal["fail", "error", "timeout"] = kind
        self.lines = lines


class NotDefinedError(NoReplyError):
    """The submission did not run to its end, so that nothing of it can be called."""


@dataclasses.dataclass(frozen=True)
class SizedReply:
    """Holds a reply of the submission's process, and its size in bytes."""

    message: Reply
    size: int


class SubmissionClient:
    """Leads the conversation with one process on the harness's side."""

    def __init__(self, peer: Peer, submission: Submission) -> None:
        self._peer = peer
        self._submission = submission
        # Numbers of requests: by test, in the order of sending, and those already answered.
        self._number_of_test: dict[int, int] = {}
        self._unanswered: collections.deque[int] = collections.deque()
        self._replies: dict[int, SizedReply] = {}

    def define(self, ahead: Iterable[tuple[int, str]], deadline: float) -> frozenset[str]:
        """Have imports, submission and set-up code run.

        Args:
            ahead: Tests whose expressions are requested in the same message, as in `ask_ahead`.
            deadline: Of `time.monotonic`.

        Returns:
            The names called by the tests that the submission does not bind.

        Raises:
            NotDefinedError: If the code does not run to its end.
        """
        try:
            self._peer.send(pack(self._submission) + self._frames(ahead), deadline)
            parsed = self._message(deadline)
            ready = self._message(deadline)
        except Timeout:
            line = "Timeout: the code did not finish running within the time limit."
            raise NotDefinedError("timeout", line) from None
        except WireError:
            line = "The process ended while the code was being run: it exited or crashed."
            raise NotDefinedError("error", line) from None
        defined = parsed.get("defined")
        if not isinstance(defined, list) or ready != {"ready": True}:
            raise NotDefinedError("error", _FORGED)
        return frozenset(self._submission["names"]).difference(map(str, defined))

    def _message(self, deadline: float) -> dict[str, object]:
        """Receive a message that comes before the first reply."""
        message = as_object(self._peer.receive(deadline))
        if "error" in message:
            description = checked_description(message["error"])
            lines = feedback.exception(description, self._submission["code"])
            lines[0] = _PLACES.get(str(message.get("phase")), "") + lines[0]
            raise NotDefinedError("error", *lines)
        return message

    def has_asked(self, test: int) -> bool:
        """Tell whether the test's expression was requested."""
        return test in self._number_of_test

    def ask_ahead(self, expressions: Iterable[tuple[int, str]], deadline: float) -> None:
        """Request the expressions of the next tests, given by number: as many as fit, or one.

        Raises:
            NoReplyError: If the process does not take them.
        """
        self._send(self._frames(expressions), deadline)

    def _frames(self, expressions: Iterable[tuple[int, str]]) -> bytes:
        frames = b""
        for test, expression in expressions:
            number, frame = _numbered({"expression": expression, "bindings": {}})
            if frames and len(frames) + len(frame) > _BYTES_AHEAD:
                break
            frames += frame
            self._number_of_test[test] = number
            self._unanswered.append(number)
        return frames

    def _send(self, frames: bytes, deadline: float) -> None:
        try:
            self._peer.send(frames, deadline)
        except Timeout:
            raise NoReplyError("timeout", _LATE) from None
        except WireError:
            raise NoReplyError("fail", _ENDED) from None

    def reply_to(self, test: int, deadline: float) -> SizedReply:
        """Wait for the reply to a test that was asked; raises `NoReplyError`."""
        return self._reply(self._number_of_test[test], deadline)

    def ask(self, request: Request, deadline: float) -> SizedReply:
        """Send one request and wait for its reply; raises `NoReplyError`."""
        number, frame = _numbered(request)
        self._unanswered.append(number)
        self._send(frame, deadline)
        return self._reply(number, deadline)

    def _reply(self, number: int, deadline: float) -> SizedReply:
        while number not in self._replies:
            oldest = self._unanswered.popleft()
            self._replies[oldest] = self._receive(oldest, deadline)
        return self._replies.pop(number)

    def _receive(self, number: int, deadline: float) -> SizedReply:
        try:
            message = as_object(self._peer.receive(deadline))
        except Timeout:
            raise NoReplyError("timeout", _LATE) from None
        except WireError:
            raise NoReplyError("fail", _ENDED) from None
        if message.pop("number", None) != number or not message.keys() & {"value", "error"}:
            raise NoReplyError("fail", _FORGED)
        if "error" in message:
            message["error"] = checked_description(message["error"])
        return SizedReply(cast("Reply", message), self._peer.frame_size)


def _numbered(request: Request) -> tuple[int, bytes]:
    """Draw a random number, and pack the request that carries it."""
    number = secrets.randbits(53)
    return number, pack({**request, "number": number})


def as_object(message: object) -> dict[str, object]:
    """Check that a message is a JSON object.

    Raises:
        WireError: If it is not.
    """
    if not isinstance(message, dict):
        raise WireError("a message that is not an object")
    return message
