"""Each test gets the outcome that it would get alone."""

from collections.abc import Iterator

import pytest

from sdpo.benchmark.sandbox.client import ForkServer
from sdpo.benchmark.sandbox.wire import Submission
from sdpo.benchmark.scoring import run_tests
from sdpo.benchmark.scoring.plan_tests import plan_tests


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    """A fork server, ended after the module."""
    started = ForkServer()
    yield started
    started.close()


def outcomes(server: ForkServer, code: str, *tests: str) -> list[run_tests.TestOutcome]:
    plan = plan_tests(tests)
    submission = Submission(code=code, imports="", setup="", names=list(plan.names))
    return run_tests.run_tests(server, submission, plan, tests, 20)


def test_outcomes_come_in_the_order_of_the_tests(server: ForkServer) -> None:
    code = "def f(x):\n    return [10, 20][x]"
    found = outcomes(
        server, code, "assert f(0) == 10", "assert f(1) == 21", "assert f(2) == 0", "assert f("
    )
    assert [outcome.kind for outcome in found] == ["pass", "fail", "fail", "error"]
    assert found[1].lines == ("Expected: 21", "Actual: 20")
    assert found[2].lines[0] == "IndexError: list index out of range"
    assert not any(outcome.for_all_tests for outcome in found)


def test_a_missing_function_holds_for_the_whole_submission(server: ForkServer) -> None:
    found = outcomes(server, "def g():\n    return 1", "assert f(0) == 10", "assert f(1) == 1")
    line = "NameError: the submission does not define f"
    assert found == [run_tests.TestOutcome("error", (line,), for_all_tests=True)] * 2
    mixed = outcomes(server, "def g():\n    return 1", "assert f(0) == 10", "assert g() == 1")
    assert [(outcome.kind, outcome.for_all_tests) for outcome in mixed] == [
        ("error", False),
        ("pass", False),
    ]


def test_a_large_value_is_compared_in_the_tests_process(server: ForkServer) -> None:
    code = "def f(n):\n    return [[0, 1]] * n"
    found = outcomes(
        server,
        code,
        "assert f(20000) == " + repr([[0, 1]] * 20000),
        "assert f(20000) == [1]",
        "assert len(f(20000)) == 20000",
    )
    assert [outcome.kind for outcome in found] == ["pass", "fail", "pass"]
    assert found[1].lines[0] == "Expected: [1]"


def test_a_false_assert_says_what_the_calls_returned(server: ForkServer) -> None:
    (found,) = outcomes(server, "def f(x):\n    return x", "assert f(1) + f(2) > 3")
    assert found.lines == ("The assertion is false.", "f(1) returned 1", "f(2) returned 2")


def test_an_error_of_the_test_itself_is_told_as_such(server: ForkServer) -> None:
    (found,) = outcomes(server, "def f(x):\n    return x", "assert f(1) / 0 == 1")
    assert found.kind == "fail"
    assert found.lines[0] == "Evaluating the test raised an exception."
    (found,) = outcomes(server, "def f(x):\n    return x", "if f(0):\n    assert f(1)")
    assert (found.kind, found.lines) == ("error", ("No assert of the test was evaluated.",))
