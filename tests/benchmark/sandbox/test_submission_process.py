"""The process of a submission says what it binds, runs it, and answers requests one by one."""

import time
from typing import Any

import pytest

from sdpo.benchmark.sandbox.client import ForkServer
from sdpo.benchmark.sandbox.peer import WireError
from sdpo.benchmark.sandbox.wire import Submission, pack


def answers(server: ForkServer, code: str, *requests: dict[str, Any], setup: str = "") -> list[Any]:
    """Every message of a process that got the code and, at once, the requests."""
    submission = Submission(code=code, imports="import math", setup=setup, names=["f", "g"])
    numbered = [{"number": number, **request} for number, request in enumerate(requests)]
    deadline = time.monotonic() + 20
    with server.session() as session:
        peer = session.start("submission", 5)
        peer.send(pack(submission) + b"".join(map(pack, numbered)), deadline)
        messages: list[Any] = []
        try:
            while len(messages) < 2 + len(requests):
                messages.append(peer.receive(deadline))
        except WireError:
            pass
    return messages


def asked(expression: str, **bindings: object) -> dict[str, Any]:
    return {"expression": expression, "bindings": bindings}


def applied(operation: str, *arguments: object) -> dict[str, Any]:
    return {"operation": operation, "arguments": arguments}


def test_it_says_what_is_defined_then_ready_then_answers(server: ForkServer) -> None:
    assert answers(server, "def f(x):\n    return x + 1", asked("f(2)"), asked("f(x)", x=3)) == [
        {"defined": ["f"]},
        {"ready": True},
        {"number": 0, "value": 3},
        {"number": 1, "value": 4},
    ]


@pytest.mark.parametrize(
    ("code", "setup", "phase", "kind", "line"),
    [
        ("x = 1\ny = (", "", "syntax", "SyntaxError", 2),
        ("x = 1\ny = x / 0", "", "definition", "ZeroDivisionError", 2),
        ("x = 1", "y = z", "setup", "NameError", None),
    ],
)
def test_what_cannot_be_run_is_told_with_its_phase(
    server: ForkServer, code: str, setup: str, phase: str, kind: str, line: int | None
) -> None:
    last = answers(server, code, setup=setup)[-1]
    assert (last["phase"], last["error"]["type"], last["error"]["line"]) == (phase, kind, line)


def test_an_exception_is_the_answer_and_does_not_end_the_process(server: ForkServer) -> None:
    code = "def f(x):\n    return [1][x]"
    _, _, raised, after = answers(server, code, asked("f(1)"), asked("f(0)"))
    assert (raised["error"]["type"], raised["error"]["line"]) == ("IndexError", 2)
    assert after == {"number": 1, "value": 1}


def test_containers_of_the_test_come_back_as_the_call_left_them(server: ForkServer) -> None:
    code = "def f(x, y):\n    x.append(y)"
    assert answers(server, code, asked("f(x, y)", x=[1], y=2))[-1] == {
        "number": 0,
        "value": None,
        "changed": {"x": [1, 2]},
    }


def test_operations_reach_the_values_that_were_kept(server: ForkServer) -> None:
    code = """
class f:
    a = 7
    def __len__(self):
        return 3
    def __getitem__(self, key):
        return key * 2
    def __call__(self, x, y=0):
        return x - y
"""
    kept = {"o": [0, "f"]}
    messages = answers(
        server,
        code,
        asked("f()"),
        applied("attribute", kept, "a"),
        applied("length", kept),
        applied("item", kept, 4),
        applied("truth", kept),
        applied("call", kept, {"t": [9]}, {"d": ["y", 2]}),
        asked("iter('abc')"),
        applied("take", {"o": [1, "x"]}, 2),
        applied("take", {"o": [1, "x"]}, 2),
    )
    values = [message["value"] for message in messages[2:]]
    assert values[0] == kept
    assert values[1:6] == [7, 3, 8, True, 7]
    assert values[7:] == [["a", "b"], ["c"]]


def test_an_unknown_operation_or_handle_is_an_error(server: ForkServer) -> None:
    messages = answers(server, "", applied("delete", 1), applied("truth", {"o": [5, "x"]}))
    assert [message["error"]["type"] for message in messages[2:]] == ["KeyError", "DecodeError"]
