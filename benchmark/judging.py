"""Judges the tests of one case: values come out of the confined process, the decision is made here.

All calls of a case share one process, last test first, which saves defining the submission anew for
each. A test that does not hold there is judged again alone in a fresh process, and that counts: one
call's exit, error or leftover state cannot make another fail.
"""

import dataclasses
import secrets
import time
from typing import Any, Literal

from sdpo.benchmark import feedback
from sdpo.benchmark.sandbox.client import ForkServer, ServerError, Session
from sdpo.benchmark.sandbox.display import display, display_pair
from sdpo.benchmark.sandbox.values import DecodeError, decode
from sdpo.benchmark.sandbox.wire import Peer, Timeout, WireError
from sdpo.benchmark.testplan import Equality, Plan, PlanError, Program

# Part of the limit that is kept for later tests, so that one that hangs leaves them their chance.
_RESERVED = 0.3
# Larger values are compared in the judge's process, which has limits: comparing hostile data can
# take any time (integers with equal hashes in a set).
_SMALL_FRAME = 1 << 16
_ENDED = "The process ended before the call returned: it exited, crashed, or ran out of a limit."
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
            run = _Run(session, submission, plan, limit)
            _judge_together(run, waiting, outcomes, tests, (end, reserve))
        if session.report.get("problem"):
            raise ServerError(f"a confined process did not start: {session.report['problem']}")
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

    def __init__(self, session: Session, submission: Submission, plan: Plan, limit: float) -> None:
        self._session = session
        self._submission = submission
        self._plan = plan
        self._limit = limit
        self._runner = session.start("runner", limit)
        self._judge: Peer | None = None
        self._missing: set[str] = set()
        self._calls: list[tuple[str, str]] = []
        self.alive = True

    def define(self, deadline: float) -> None:
        """Have imports, submission and set-up code run; raises `_Stopped` if they do not."""
        job = {**dataclasses.asdict(self._submission), "names": self._plan.names}
        try:
            self._runner.send(job, deadline)
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
                return self._equality(planned, test, deadline)
            return self._program(planned, test, deadline)
        except _Ended as ended:
            self.alive = False
            return ended.outcome

    def _equality(self, planned: Equality, test: str, deadline: float) -> Outcome:
        request = {"operation": "evaluate", "expression": planned.expression}
        reply = self._request(request, deadline)
        if "error" in reply:
            return self._raised(reply["error"], test)
        if self._runner.frame_size > _SMALL_FRAME:
            return self._program(planned.program(), test, deadline, reply)
        actual = _value(reply)
        if _equal(actual, planned.expected):
            return Outcome("pass")
        shown = display_pair(planned.expected, actual)
        return Outcome("fail", tuple(feedback.difference(*shown, test)))

    def _raised(self, error: dict[str, Any], test: str) -> Outcome:
        return Outcome("fail", tuple(feedback.exception(error, self._submission.code, test)))

    def _request(self, request: dict[str, Any], deadline: float) -> dict[str, Any]:
        """Ask the submission's process; raises `_Ended` if no proper answer comes."""
        number = secrets.randbits(53)
        try:
            self._runner.send({**request, "number": number}, deadline)
            reply = _checked(self._runner.receive(deadline))
        except Timeout:
            raise _Ended("timeout", "Timeout: no result within the time limit.") from None
        except WireError:
            raise _Ended("fail", _ENDED) from None
        if reply.pop("number", None) != number or not reply.keys() & {"value", "error"}:
            raise _Ended("fail", _FORGED)
        if "error" in reply:
            reply["error"] = _description(reply["error"])
        return reply

    def _program(
        self,
        planned: Program,
        test: str,
        deadline: float,
        reply: dict[str, Any] | None = None,
    ) -> Outcome:
        """Have the judge evaluate a test; `reply` answers its first request if it is there."""
        if self._judge is None:
            self._judge = self._session.start("judge", self._limit)
        job = {
            "modules": planned.modules,
            "imports": self._plan.imports,
            "setup": self._plan.setup,
            "program": planned.source,
        }
        try:
            self._judge.send(job, deadline)
            while "report" not in (message := _checked(self._judge.receive(deadline))):
                reply = reply or self._forward(message["request"], planned, deadline)
                self._judge.send(reply, deadline)
                reply = None
        except Timeout:
            raise _Ended("timeout", "Timeout: no result within the time limit.") from None
        except WireError:
            line = "The test's own code ended without a result: it exited or ran out of a limit."
            raise _Ended("fail", line) from None
        return self._reported(message["report"], test)

    def _forward(
        self, request: dict[str, Any], planned: Program, deadline: float
    ) -> dict[str, Any]:
        expression = ""
        if request["operation"] == "evaluate":
            expression = request["expression"] = planned.expressions[request["expression"]]
        reply = self._request(request, deadline)
        if expression and "value" in reply and self._runner.frame_size <= _SMALL_FRAME:
            self._calls.append((expression, display(_value(reply))))
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
