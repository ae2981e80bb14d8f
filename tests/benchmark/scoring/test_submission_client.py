"""A reply counts if it answers the oldest request, and anything else ends the conversation."""

import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from sdpo.benchmark.sandbox.peer import Peer
from sdpo.benchmark.sandbox.wire import Pipe, Submission
from sdpo.benchmark.scoring.submission_client import (
    NoReplyError,
    NotDefinedError,
    SubmissionClient,
)

_SUBMISSION = Submission(code="x = 1\ny = x / 0", imports="", setup="", names=["f", "g"])


@pytest.fixture
def ends() -> Iterator[tuple[SubmissionClient, Pipe]]:
    """The client, and the end of the process that the test plays."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield SubmissionClient(Peer(ours), _SUBMISSION), Pipe(theirs.fileno())


def soon() -> float:
    return time.monotonic() + 5


def defined(client: SubmissionClient, process: Pipe, *expressions: str) -> list[Any]:
    """Requests that came with the submission, whose code ran to its end."""
    process.send({"defined": ["f"]})
    process.send({"ready": True})
    assert client.define(enumerate(expressions), soon()) == {"g"}
    assert process.receive() == _SUBMISSION
    return [process.receive() for _ in expressions]


def test_replies_belong_to_tests_in_the_order_of_sending(
    ends: tuple[SubmissionClient, Pipe],
) -> None:
    client, process = ends
    first, second = defined(client, process, "f(1)", "f(2)")
    assert (first["expression"], second["expression"]) == ("f(1)", "f(2)")
    assert (client.has_asked(1), client.has_asked(2)) == (True, False)
    process.send({"number": first["number"], "value": 10})
    process.send({"number": second["number"], "value": 20})
    assert client.reply_to(1, soon()).message == {"value": 20}
    assert client.reply_to(0, soon()).message == {"value": 10}


@pytest.mark.parametrize(
    "reply",
    [
        {"value": 3},
        {"number": 1, "value": 3},
        {"number": None, "value": 3},
        {"other": 3},
        [],
    ],
)
def test_a_reply_to_no_request_is_forged_or_broken(
    ends: tuple[SubmissionClient, Pipe], reply: object
) -> None:
    client, process = ends
    defined(client, process, "f(1)")
    process.send(reply)
    with pytest.raises(NoReplyError) as refused:
        client.reply_to(0, soon())
    assert refused.value.kind == "fail"


def test_a_reply_needs_a_value_or_an_error(ends: tuple[SubmissionClient, Pipe]) -> None:
    client, process = ends
    (request,) = defined(client, process, "f(1)")
    process.send({"number": request["number"], "changed": {}})
    with pytest.raises(NoReplyError, match="wrote to the connection"):
        client.reply_to(0, soon())


def test_requests_ahead_fill_a_buffer_and_are_at_least_one(
    ends: tuple[SubmissionClient, Pipe],
) -> None:
    client, process = ends
    long = f"f({'x' * 20_000})"
    defined(client, process, long)
    client.ask_ahead([(1, long), (2, "f(2)"), (3, long), (4, "f(4)")], soon())
    assert [client.has_asked(test) for test in range(5)] == [True, True, True, False, False]


def test_silence_is_a_timeout(ends: tuple[SubmissionClient, Pipe]) -> None:
    client, process = ends
    defined(client, process, "f(1)")
    with pytest.raises(NoReplyError) as late:
        client.reply_to(0, time.monotonic() + 0.05)
    assert late.value.kind == "timeout"


@pytest.mark.parametrize(
    ("messages", "kind", "lines"),
    [
        (
            [{"error": {"type": "E", "message": "m", "line": 2}, "phase": "definition"}],
            "error",
            ("E: m", "Line 2 of the submitted code: y = x / 0"),
        ),
        (
            [{"defined": []}, {"error": {"type": "E", "message": "m"}, "phase": "setup"}],
            "error",
            ("test_setup_code: E: m",),
        ),
        ([{"defined": []}, {"ready": False}], "error", ("The submission wrote",)),
        ([{"ready": True}, {"ready": True}], "error", ("The submission wrote",)),
        ([[]], "error", ("The process ended while",)),
        ([], "timeout", ("Timeout: the code did not finish",)),
    ],
)
def test_code_that_does_not_run_to_its_end_is_told(
    ends: tuple[SubmissionClient, Pipe], messages: list[Any], kind: str, lines: tuple[str, ...]
) -> None:
    client, process = ends
    for message in messages:
        process.send(message)
    with pytest.raises(NotDefinedError) as refused:
        client.define([], time.monotonic() + (5 if messages else 0.05))
    assert refused.value.kind == kind
    assert len(refused.value.lines) == len(lines)
    for told, expected in zip(refused.value.lines, lines, strict=True):
        assert told.startswith(expected)
