"""Judges the tests of one case: values come out of the confined process, the decision is made here.

All calls of a case share one process, last test first, which saves defining the submission anew for
each. A test that does not hold there is judged again alone in a fresh process, and that counts: one
call's exit, error or leftover state cannot make another fail.

Requests are sent ahead, and the process answers each before it turns to the next. So both sides
rarely wait for the other, and what a call breaks cannot take back the answers before it.
"""

import collections
import dataclasses
import secrets
import time
from typing import Any, Literal

from sdpo.benchmark.sandbox.client import ForkServer, ServerError, Session
from sdpo.benchmark.sandbox.display import display, display_pair
from sdpo.benchmark.sandbox.peer import Peer, Timeout, WireError
from sdpo.benchmark.sandbox.values import DecodeError, decode
from sdpo.benchmark.sandbox.wire import pack
from sdpo.benchmark.scoring import feedback
from sdpo.benchmark.scoring.plan_tests import Equality, Plan, PlanError, Program

# Part of the limit that is kept for later tests, so that one that hangs leaves them their chance.
_RESERVED = 0.3
# Bytes of requests sent ahead. They lie in the socket's buffer while the other side sends a reply;
# were they more than fit in, both sides would wait for the other to read.
_AHEAD = 1 << 15
# Larger values are compared in the judge's process, which has limits: comparing hostile data can
# take any time (integers with equal hashes in a set).
_SMALL_FRAME = 1 << 16
_ENDED = "The process ended before the call returned: it exited, crashed, or ran out of a limit."
_LATE = "Timeout: no result within the time limit."
_FORGED = "The submission wrote to the connection that carries its results."


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one test.

    `lines` say why it did not pass; `whole` marks that this holds for the submission as a whole.
    """

    kind: Literal["pass", "fail", "error", "timeout"]
    lines: tuple[str, ...] = ()
    whole: bool = False


@dataclasses.dataclass(frozen=True)
class Submission:
    """What the confined process gets to see."""

    code: str
    imports: str
    setup: str


class _Stopped(Exception):
    """Nothing more can be judged; carries the outcome of the tests that are left."""

    def __init__(self, kind: Literal["error", "timeout"], *lines: str) -> None:
        super().__init__(*lines)
        self.outcome = Outcome(kind, lines, whole=True)


class _Ended(Exception):
    """The confined process gave no answer that counts; carries the outcome of the test."""

    def __init__(self, kind: Literal["fail", "timeout"], line: str) -> None:
        super().__init__(line)
        self.outcome = Outcome(kind, (line,))


@dataclasses.dataclass(frozen=True)
class _Reply:
    """A reply of the submission's process, and its size in bytes."""

    message: dict[str, Any]
    size: int


@dataclasses.dataclass(frozen=True)
class _Foreign:
    """A value that is not plain; equal to nothing."""

    kind: str

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __repr__(self) -> str:
        return f"<{self.kind} object>"


def judge(
    server: ForkServer, submission: Submission, plan: Plan, tests: tuple[str, ...], limit: float
) -> list[Outcome]:
    """Judge every test of a case.

    Args:
        server: An idle fork server.
        submission: The code under test.
        plan: The tests, planned.
        tests: Their source.
        limit: Wall time in seconds for all of them together.

    Returns:
        One outcome per test, in order.

    Raises:
        ServerError: If the server ended meanwhile.
    """
    outcomes: dict[int, Outcome] = {
        index: Outcome("error", (str(test),))
        for index, test in enumerate(plan.tests)
        if isinstance(test, PlanError)
    }
    waiting = [index for index in range(len(tests)) if index not in outcomes]
    end = time.monotonic() + limit
    reserve = _RESERVED * limit / max(1, len(waiting))
    while waiting:
        with server.session() as session:
            run = _Run(session, submission, plan, limit, waiting[::-1])
            _judge_together(run, waiting, outcomes, tests, (end, reserve))
        if session.problem:
            raise ServerError(f"a confined process did not start: {session.problem}")
    return [outcomes[index] for index in range(len(tests))]


def _judge_together(
    run: "_Run",
    waiting: list[int],
    outcomes: dict[int, Outcome],
    tests: tuple[str, ...],
    clock: tuple[float, float],
) -> None:
    """Judge tests in one process until one of them needs a fresh one."""

    def deadline() -> float:
        return clock[0] - clock[1] * (len(waiting) - 1)

    try:
        run.define(deadline())
    except _Stopped as stopped:
        outcomes.update(dict.fromkeys(waiting, stopped.outcome))
        waiting.clear()
        return
    alone = True
    while waiting:
        index = waiting[-1]
        outcome = run.outcome(index, tests[index], deadline())
        if outcome.kind != "pass" and not alone:
            return
        outcomes[index] = outcome
        waiting.pop()
        alone = False
        if not run.alive:
            return


class _Run:
    """One confined process with the submission, and where needed one with the tests."""

    def __init__(
        self, session: Session, submission: Submission, plan: Plan, limit: float, order: list[int]
    ) -> None:
        self._session = session
        self._submission = submission
        self._plan = plan
        self._limit = limit
        self._order = order
        self._runner = session.start("runner", limit)
        self._judge: Peer | None = None
        self._missing: set[str] = set()
        self._calls: list[tuple[str, str]] = []
        # Numbers of requests: by test, in the order of sending, and those already answered.
        self._asked: dict[int, int] = {}
        self._unanswered: collections.deque[int] = collections.deque()
        self._replies: dict[int, _Reply] = {}
        self.alive = True

    def define(self, deadline: float) -> None:
        """Have imports, submission and set-up code run; raises `_Stopped` if they do not."""
        job = {**vars(self._submission), "names": self._plan.names}
        try:
            self._runner.send(pack(job) + self._requests_from(0), deadline)
            parsed = _checked(self._runner.receive(deadline))
            self._stop_on_error(parsed)
            defined = parsed.get("defined")
            ready = _checked(self._runner.receive(deadline))
            self._stop_on_error(ready)
        except Timeout:
            line = "Timeout: the code did not finish running within the time limit."
            raise _Stopped("timeout", line) from None
        except WireError:
            line = "The process ended while the code was being run: it exited or crashed."
            raise _Stopped("error", line) from None
        if not isinstance(defined, list) or ready != {"ready": True}:
            raise _Stopped("error", _FORGED)
        self._missing = set(self._plan.names).difference(map(str, defined))

    def _stop_on_error(self, message: dict[str, Any]) -> None:
        if "error" in message:
            lines = feedback.exception(_description(message["error"]), self._submission.code)
            where = {"imports": "test_imports: ", "setup": "test_setup_code: "}
            lines[0] = where.get(str(message.get("phase")), "") + lines[0]
            raise _Stopped("error", *lines)

    def outcome(self, index: int, test: str, deadline: float) -> Outcome:
        """Judge one test; `alive` tells whether another can follow."""
        planned = self._plan.tests[index]
        assert not isinstance(planned, PlanError)
        missing = self._missing.intersection(planned.names)
        if missing:
            names = ", ".join(sorted(missing))
            line = f"NameError: the submission does not define {names}"
            return Outcome("error", (line,), whole=missing == set(self._plan.names))
        self._calls = []
        try:
            if isinstance(planned, Equality):
                return self._equality(index, planned, test, deadline)
            return self._program(planned, test, deadline)
        except _Ended as ended:
            self.alive = False
            return ended.outcome

    def _equality(self, index: int, planned: Equality, test: str, deadline: float) -> Outcome:
        if index not in self._asked:
            self._send(self._requests_from(self._order.index(index)), deadline)
        reply = self._reply(self._asked[index], deadline)
        if "error" in reply.message:
            return self._raised(reply.message["error"], test)
        if reply.size > _SMALL_FRAME:
            return self._program(planned.program(), test, deadline, reply)
        actual = _value(reply.message)
        if _equal(actual, planned.expected):
            return Outcome("pass")
        shown = display_pair(planned.expected, actual)
        return Outcome("fail", tuple(feedback.difference(*shown, test)))

    def _raised(self, error: dict[str, Any], test: str) -> Outcome:
        return Outcome("fail", tuple(feedback.exception(error, self._submission.code, test)))

    def _requests_from(self, position: int) -> bytes:
        """Requests for the next tests that need no judge; at least one, if that is the next."""
        frames = b""
        for index in self._order[position:]:
            planned = self._plan.tests[index]
            if not isinstance(planned, Equality):
                break
            number, frame = _numbered({"operation": "evaluate", "expression": planned.expression})
            if frames and len(frames) + len(frame) > _AHEAD:
                break
            frames += frame
            self._asked[index] = number
            self._unanswered.append(number)
        return frames

    def _send(self, frames: bytes, deadline: float) -> None:
        try:
            self._runner.send(frames, deadline)
        except Timeout:
            raise _Ended("timeout", _LATE) from None
        except WireError:
            raise _Ended("fail", _ENDED) from None

    def _reply(self, number: int, deadline: float) -> "_Reply":
        """The reply to a request; raises `_Ended` if no proper answer comes."""
        while number not in self._replies:
            oldest = self._unanswered.popleft()
            self._replies[oldest] = self._receive(oldest, deadline)
        return self._replies.pop(number)

    def _receive(self, number: int, deadline: float) -> "_Reply":
        try:
            message = _checked(self._runner.receive(deadline))
        except Timeout:
            raise _Ended("timeout", _LATE) from None
        except WireError:
            raise _Ended("fail", _ENDED) from None
        if message.pop("number", None) != number or not message.keys() & {"value", "error"}:
            raise _Ended("fail", _FORGED)
        if "error" in message:
            message["error"] = _description(message["error"])
        return _Reply(message, self._runner.frame_size)

    def _program(
        self,
        planned: Program,
        test: str,
        deadline: float,
        known: "_Reply | None" = None,
    ) -> Outcome:
        """Have the judge evaluate a test; `known` answers its first request if it is there."""
        if self._judge is None:
            self._judge = self._session.start("judge", self._limit)
        job = {
            "modules": planned.modules,
            "imports": self._plan.imports,
            "setup": self._plan.setup,
            "program": planned.source,
        }
        try:
            self._judge.send(pack(job), deadline)
            while "report" not in (message := _checked(self._judge.receive(deadline))):
                reply = known or self._forward(message["request"], planned, deadline)
                self._judge.send(pack(reply.message), deadline)
                known = None
        except Timeout:
            raise _Ended("timeout", _LATE) from None
        except WireError:
            line = "The test's own code ended without a result: it exited or ran out of a limit."
            raise _Ended("fail", line) from None
        return self._reported(message["report"], test)

    def _forward(self, request: dict[str, Any], planned: Program, deadline: float) -> "_Reply":
        expression = ""
        if request["operation"] == "evaluate":
            expression = request["expression"] = planned.expressions[request["expression"]]
        number, frame = _numbered(request)
        self._unanswered.append(number)
        self._send(frame, deadline)
        reply = self._reply(number, deadline)
        if expression and "value" in reply.message and reply.size <= _SMALL_FRAME:
            self._calls.append((expression, display(_value(reply.message))))
        return reply

    def _reported(self, report: dict[str, Any], test: str) -> Outcome:
        if report["ok"] and report["checks"] > 0:
            return Outcome("pass")
        if report["ok"]:
            return Outcome("error", ("No assert of the test was evaluated.",))
        if "error" not in report:
            return Outcome("fail", tuple(self._false(report.get("sides"), test)))
        if report["raised_by_submission"]:
            return self._raised(_description(report["error"]), test)
        lines = feedback.exception({**report["error"], "line": None}, "", test)
        kind = "error" if report["stage"] == "setup" else "fail"
        return Outcome(kind, ("Evaluating the test raised an exception.", *lines))

    def _false(self, sides: list[str] | None, test: str) -> list[str]:
        if sides is None:
            return feedback.returned(self._calls, test)
        return feedback.difference(sides[0], sides[1], test)


def _numbered(request: dict[str, Any]) -> tuple[int, bytes]:
    """A random number and, as a frame, the request that carries it."""
    number = secrets.randbits(53)
    return number, pack({**request, "number": number})


def _checked(message: object) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise WireError("a message that is not an object")
    return message


def _value(reply: dict[str, Any]) -> Any:
    try:
        return decode(reply["value"], lambda handle, kind: _Foreign(kind))
    except DecodeError:
        return _Foreign("malformed")


def _equal(actual: Any, expected: Any) -> bool:
    try:
        return bool(actual == expected)
    except (RecursionError, ArithmeticError):
        # Nested too deep, or a signalling NaN.
        return False


def _description(error: object) -> dict[str, Any]:
    """What an exception is said to be, with nothing in it trusted."""
    fields = error if isinstance(error, dict) else {}
    line = fields.get("line")
    bases = fields.get("bases")
    return {
        "type": str(fields.get("type"))[:100],
        "bases": [str(base)[:100] for base in bases][:50] if isinstance(bases, list) else [],
        "message": str(fields.get("message"))[:2000],
        "line": line if isinstance(line, int) else None,
    }
