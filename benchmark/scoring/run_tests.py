"""Runs the tests of one case: values come out of confined processes, verdicts are made here.

All calls of a case share one process, last test first, which saves defining the submission anew for
each. A test that does not hold there is run again alone in a fresh process, and that counts: one
call's exit, error or leftover state cannot make another fail.
"""

import dataclasses
import time
from collections.abc import Iterator
from typing import Any, Literal, cast

from sdpo.benchmark.sandbox.client import ForkServer, ServerError, Session
from sdpo.benchmark.sandbox.display import display, display_pair
from sdpo.benchmark.sandbox.exceptions import Description, checked_description
from sdpo.benchmark.sandbox.peer import Peer, Timeout, WireError
from sdpo.benchmark.sandbox.values import DecodeError, Encoded, decode
from sdpo.benchmark.sandbox.wire import PlannedTest, Report, Request, Submission, pack
from sdpo.benchmark.scoring import feedback
from sdpo.benchmark.scoring.plan_tests import Equality, Plan, PlanError, Program
from sdpo.benchmark.scoring.submission_client import (
    NoReplyError,
    NotDefinedError,
    SizedReply,
    SubmissionClient,
    as_object,
)

# Part of the limit that is kept for later tests, so that one that hangs leaves them their chance.
_RESERVED = 0.3
# Larger values are compared in a tests process, which has limits: comparing hostile data can take
# any time (integers with equal hashes in a set).
_SMALL_REPLY = 1 << 16


@dataclasses.dataclass(frozen=True)
class TestOutcome:
    """Says what became of one test.

    `lines` say why it did not pass; `for_all_tests` marks that the submission as a whole failed.
    """

    __test__ = False

    kind: Literal["pass", "fail", "error", "timeout"]
    lines: tuple[str, ...] = ()
    for_all_tests: bool = False


@dataclasses.dataclass(frozen=True)
class _Foreign:
    """Stands for a value that is not plain; equal to nothing."""

    kind: str

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __repr__(self) -> str:
        return f"<{self.kind} object>"


class _Clock:
    """Divides the time of a case: each test may take what later ones do not have reserved."""

    def __init__(self, seconds: float, tests: int) -> None:
        self._end = time.monotonic() + seconds
        self._reserve = _RESERVED * seconds / max(1, tests)

    def deadline(self, tests_left: int) -> float:
        """Say by when the first of the tests left must have its result."""
        return self._end - self._reserve * (tests_left - 1)


def run_tests(
    server: ForkServer, submission: Submission, plan: Plan, tests: tuple[str, ...], seconds: float
) -> list[TestOutcome]:
    """Run every test of a case.

    Args:
        server: An idle fork server.
        submission: The code under test.
        plan: The tests, planned.
        tests: Their source.
        seconds: Wall time for all of them together.

    Returns:
        One outcome per test, in order.

    Raises:
        ServerError: If the server ended meanwhile.
    """
    outcomes = {
        index: TestOutcome("error", (str(test),))
        for index, test in enumerate(plan.tests)
        if isinstance(test, PlanError)
    }
    waiting = [index for index in range(len(tests)) if index not in outcomes]
    clock = _Clock(seconds, len(waiting))
    while waiting:
        with server.session() as session:
            process = _Process(session, submission, plan, tests, seconds)
            outcomes |= _run_in_one_process(process, waiting, clock)
        if session.problem:
            raise ServerError(f"a confined process did not start: {session.problem}")
    return [outcomes[index] for index in range(len(tests))]


def _run_in_one_process(
    process: "_Process", waiting: list[int], clock: _Clock
) -> dict[int, TestOutcome]:
    """Run tests, the last first, until one needs a fresh process; what is done leaves `waiting`."""
    outcomes: dict[int, TestOutcome] = {}
    try:
        process.define(waiting[::-1], clock.deadline(len(waiting)))
    except NotDefinedError as error:
        outcome = TestOutcome(error.kind, error.lines, for_all_tests=True)
        outcomes = dict.fromkeys(waiting, outcome)
        waiting.clear()
    while waiting and process.alive:
        outcome = process.outcome(waiting[-1], waiting[::-1], clock.deadline(len(waiting)))
        if outcome.kind != "pass" and outcomes:
            break
        outcomes[waiting.pop()] = outcome
    return outcomes


class _Process:
    """Runs tests against one process of the submission, where needed with one of the tests."""

    def __init__(
        self,
        session: Session,
        submission: Submission,
        plan: Plan,
        tests: tuple[str, ...],
        cpu_seconds: float,
    ) -> None:
        self._session = session
        self._code = submission["code"]
        self._plan = plan
        self._tests = tests
        self._cpu_seconds = cpu_seconds
        self._client = SubmissionClient(session.start("submission", cpu_seconds), submission)
        self._tests_process: Peer | None = None
        self._missing: frozenset[str] = frozenset()
        self.alive = True

    def define(self, order: list[int], deadline: float) -> None:
        """Define the submission; raises `NotDefinedError`."""
        self._missing = self._client.define(self._expressions(order), deadline)

    def _expressions(self, order: list[int]) -> Iterator[tuple[int, str]]:
        """Expressions of the tests up to the first that needs the tests process."""
        for index in order:
            planned = self._plan.tests[index]
            if not isinstance(planned, Equality):
                break
            yield index, planned.expression

    def outcome(self, index: int, order: list[int], deadline: float) -> TestOutcome:
        """Run the first test in `order`; afterwards `alive` tells whether another can follow."""
        planned = self._plan.tests[index]
        assert not isinstance(planned, PlanError)
        missing = self._missing.intersection(planned.names)
        if missing:
            line = f"NameError: the submission does not define {', '.join(sorted(missing))}"
            return TestOutcome("error", (line,), for_all_tests=missing == set(self._plan.names))
        try:
            if isinstance(planned, Program):
                return self._program(planned, self._tests[index], deadline)
            if not self._client.has_asked(index):
                self._client.ask_ahead(self._expressions(order), deadline)
            reply = self._client.reply_to(index, deadline)
            return self._equality(planned, self._tests[index], reply, deadline)
        except NoReplyError as error:
            self.alive = False
            return TestOutcome(error.kind, error.lines)

    def _equality(
        self, planned: Equality, test: str, reply: SizedReply, deadline: float
    ) -> TestOutcome:
        if "error" in reply.message:
            return self._raised(reply.message["error"], test)
        if reply.size > _SMALL_REPLY:
            return self._program(planned.program(), test, deadline, reply)
        actual = _value(reply.message.get("value"))
        if _equal(actual, planned.expected):
            return TestOutcome("pass")
        shown = display_pair(planned.expected, actual)
        return TestOutcome("fail", tuple(feedback.difference(*shown, test)))

    def _raised(self, error: Description, test: str) -> TestOutcome:
        return TestOutcome("fail", tuple(feedback.exception(error, self._code, test)))

    def _program(
        self,
        planned: Program,
        test: str,
        deadline: float,
        known: SizedReply | None = None,
    ) -> TestOutcome:
        """Have the tests process evaluate a test; `known` answers its first request if given."""
        if self._tests_process is None:
            self._tests_process = self._session.start("tests", self._cpu_seconds)
        peer, calls = self._tests_process, []
        job = PlannedTest(
            modules=list(planned.modules),
            imports=self._plan.imports,
            setup=self._plan.setup,
            program=planned.source,
        )
        try:
            peer.send(pack(job), deadline)
            while "report" not in (message := as_object(peer.receive(deadline))):
                request = cast("Request", message["request"])
                reply = known or self._forward(request, planned, calls, deadline)
                peer.send(pack(reply.message), deadline)
                known = None
        except Timeout:
            raise NoReplyError("timeout", "Timeout: no result within the time limit.") from None
        except WireError:
            line = "The test's own code ended without a result: it exited or ran out of a limit."
            raise NoReplyError("fail", line) from None
        return self._reported(cast("Report", message["report"]), calls, test)

    def _forward(
        self, request: Request, planned: Program, calls: list[tuple[str, str]], deadline: float
    ) -> SizedReply:
        """Pass a request on to the submission; notes in `calls` what an expression returned."""
        if "expression" not in request:
            return self._client.ask(request, deadline)
        expression = planned.expressions[int(request["expression"])]
        reply = self._client.ask({**request, "expression": expression}, deadline)
        if "value" in reply.message and reply.size <= _SMALL_REPLY:
            calls.append((expression, display(_value(reply.message.get("value")))))
        return reply

    def _reported(self, report: Report, calls: list[tuple[str, str]], test: str) -> TestOutcome:
        if report["error"] is not None:
            error = checked_description(report["error"])
            if report["raised_by_submission"]:
                return self._raised(error, test)
            lines = feedback.exception({**error, "line": None}, "", test)
            kind = "error" if report["in_setup"] else "fail"
            return TestOutcome(kind, ("Evaluating the test raised an exception.", *lines))
        if not report["ok"]:
            sides = report["sides"]
            lines = feedback.difference(*sides, test) if sides else feedback.returned(calls, test)
            return TestOutcome("fail", tuple(lines))
        if not report["checks"]:
            return TestOutcome("error", ("No assert of the test was evaluated.",))
        return TestOutcome("pass")


def _value(data: Encoded) -> Any:
    try:
        return decode(data, lambda handle, kind: _Foreign(kind))
    except DecodeError:
        return _Foreign("malformed")


def _equal(actual: Any, expected: Any) -> bool:
    try:
        return bool(actual == expected)
    except (RecursionError, ArithmeticError):
        # Nested too deep, or a signalling NaN.
        return False
