"""The process of the tests asks for the submission's values and decides what holds."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from sdpo.benchmark.sandbox.client import ForkServer
from sdpo.benchmark.sandbox.wire import PlannedTest, pack


def report_of(
    server: ForkServer, program: str, answer: Callable[[dict[str, Any]], dict[str, Any]], **job: Any
) -> dict[str, Any]:
    """The report on a program whose requests are answered by a function."""
    empty = PlannedTest(modules=[], imports="", setup="", program=program)
    deadline = time.monotonic() + 20
    with server.session() as session:
        peer = session.start("tests", 5)
        peer.send(pack({**empty, **job}), deadline)
        message: Any = peer.receive(deadline)
        while "report" not in message:
            peer.send(pack(answer(message["request"])), deadline)
            message = peer.receive(deadline)
    return message["report"]


def three(request: dict[str, Any]) -> dict[str, Any]:
    assert request == {"expression": 0, "bindings": {}}
    return {"value": 3}


def test_a_comparison_that_holds_is_counted(server: ForkServer) -> None:
    report = report_of(server, "__compare__('Eq', __ask__(0, {}), 3)", three)
    assert (report["ok"], report["checks"], report["error"]) == (True, 1, None)


def test_a_comparison_that_fails_shows_both_sides(server: ForkServer) -> None:
    report = report_of(server, "__compare__('Eq', __ask__(0, {}), 4)", three)
    assert (report["ok"], report["checks"], report["sides"]) == (False, 0, ["4", "3"])


@pytest.mark.parametrize(
    ("comparison", "right", "holds"),
    [
        ("NotEq", "3", False),
        ("Lt", "4", True),
        ("LtE", "3", True),
        ("Gt", "3", False),
        ("GtE", "3", True),
        ("Is", "None", False),
        ("IsNot", "None", True),
        ("In", "[3]", True),
        ("NotIn", "[3]", False),
    ],
)
def test_each_comparison_is_pythons(
    server: ForkServer, comparison: str, right: str, holds: bool
) -> None:
    program = f"__compare__({comparison!r}, __ask__(0, {{}}), {right})"
    assert report_of(server, program, three)["ok"] is holds


def test_an_exception_of_the_submission_reaches_the_tests_handler(server: ForkServer) -> None:
    error = {"type": "Own", "bases": ["Own", "KeyError"], "message": "m", "line": 2}
    caught = "try:\n    __ask__(0, {})\nexcept KeyError as error:\n    __truth__('m' in str(error))"
    assert report_of(server, caught, lambda request: {"error": error})["ok"]
    report = report_of(server, "__ask__(0, {})", lambda request: {"error": error})
    assert (report["ok"], report["error"], report["raised_by_submission"]) == (False, error, True)


def test_an_exception_of_the_test_is_told_with_its_place(server: ForkServer) -> None:
    report = report_of(server, "1 / 0", three)
    assert report["error"]["type"] == "ZeroDivisionError"
    assert (report["raised_by_submission"], report["in_setup"]) == (False, False)
    assert report_of(server, "__truth__(1)", three, setup="1 / 0")["in_setup"]


def test_what_is_not_plain_is_asked_for_piece_by_piece(server: ForkServer) -> None:
    requests: list[dict[str, Any]] = []
    replies = iter([{"o": [7, "generator"]}, {"o": [8, "iterator"]}, [1], [2], []])

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        requests.append(request)
        return {"value": next(replies)}

    assert report_of(server, "__truth__(sum(__ask__(0, {})) == 3)", answer)["ok"]
    generator, iterator = {"o": [7, "generator"]}, {"o": [8, "iterator"]}
    assert requests[1:] == [
        {"operation": "iterate", "arguments": [generator]},
        *({"operation": "take", "arguments": [iterator, count]} for count in (1, 2, 4)),
    ]


def test_a_container_is_given_what_the_call_left_in_it(server: ForkServer) -> None:
    def answer(request: dict[str, Any]) -> dict[str, Any]:
        assert request == {"expression": 0, "bindings": {"x": [3, 1]}}
        return {"value": None, "changed": {"x": [1, 3], "y": 5}}

    program = "x = y = [3, 1]\n__ask__(0, {'x': x})\n__truth__(y == [1, 3])"
    assert report_of(server, program, answer)["ok"]


def test_an_object_of_the_test_is_not_passed_to_the_submission(server: ForkServer) -> None:
    report = report_of(server, "g = lambda: 1\n__ask__(0, {'g': g})", three)
    assert report["error"]["message"] == "the test cannot pass a function to the submission"
