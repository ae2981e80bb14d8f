"""Scores completions by running them, confined, against their tests.

*Covered.* A submission runs in a fresh process under resource limits, Landlock (reads the standard
library, writes its scratch folder), a seccomp allow list (no new process or program, no socket, no
signal to others, no change of mode or owner) and, where the kernel grants them, namespaces (no
other process, no network device, everything read-only). It learns the call expressions, never the
values they should have; those are compared outside. It is killed at the time limit, and every
process and file of it is gone before the next one starts. If the harness dies, the fork servers
end.

*Not covered.* Flaws of the kernel or of the interpreter's own C code. Time as a channel: runs share
processors and memory bandwidth. Use of the processor up to the limit. Existence and size of host
files, which `stat` tells. Answers that a submission knows by heart: whoever shows the tests in the
prompt can be answered with a table. A test that only asks for truth (`assert f(x)`) is passed by a
function that returns true, whichever way it makes its process say so. Where a layer is missing from
`isolation`, what it covers is not covered; without `seccomp`, a submission can start processes, and
they are found by parentage when the run ends.
"""

import concurrent.futures
import os
import queue
import threading
import time
from collections.abc import Iterable, Iterator
from types import TracebackType

from sdpo.benchmark.problems.case import Case, Result, Status
from sdpo.benchmark.sandbox.client import ForkServer, Limits, ServerError, require_core
from sdpo.benchmark.sandbox.wire import Submission
from sdpo.benchmark.scoring import feedback
from sdpo.benchmark.scoring.extract_code import MAX_CODE, extract_code
from sdpo.benchmark.scoring.plan_tests import Plan, PlanError, plan_tests
from sdpo.benchmark.scoring.run_tests import TestOutcome, run_tests

# The slowest reference solution of MBPP takes 6 s on an idle core.
DEFAULT_TIMEOUT = 20.0
# A case whose server ends twice ends servers.
_ATTEMPTS = 2


def default_workers() -> int:
    """Number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _NothingToRunError(Exception):
    """A case without tests, or without code that could be run."""


class Executor:
    """Scores cases by a pool of fork servers; safe to use from several threads.

    Args:
        workers: Number of servers, each running one case at a time; by default one per processor.
        timeout: Wall time in seconds for all tests of a case together.
        limits: Memory and file limits of a confined process.
        require_isolation: Refuse to start unless the core layers are active.
        disabled: Layers not to use; for tests and measurements.

    Raises:
        ServerError: If a fork server does not start.
        IsolationError: If `require_isolation` and a core layer is missing.
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        limits: Limits | None = None,
        require_isolation: bool = False,
        disabled: frozenset[str] = frozenset(),
    ) -> None:
        workers = default_workers() if workers is None else workers
        if workers < 1:
            raise ValueError(f"workers is {workers}; it must be at least 1")
        if not 0 < timeout < float("inf"):
            raise ValueError(f"timeout is {timeout}; it must be a positive number of seconds")
        self.timeout = timeout
        self.workers = workers
        self._limits = limits
        self._disabled = disabled
        self._owner = os.getpid()
        self._closed = False
        self._lock = threading.Lock()
        self._servers: set[ForkServer] = set()
        self._idle: queue.LifoQueue[ForkServer] = queue.LifoQueue()
        self._threads = concurrent.futures.ThreadPoolExecutor(workers, "sdpo-mbpp")
        try:
            for _ in range(workers):
                self._idle.put(self._start())
            self.isolation: tuple[str, ...] = tuple(next(iter(self._servers)).layers)
            if require_isolation:
                require_core(list(self.isolation))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Executor":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _start(self) -> ForkServer:
        server = ForkServer(self._limits, disabled=self._disabled)
        with self._lock:
            self._servers.add(server)
            closed = self._closed
        if closed:
            self._discard(server)
            raise ServerError("the executor is closed")
        return server

    def _discard(self, server: ForkServer) -> None:
        with self._lock:
            self._servers.discard(server)
        server.close()

    def close(self) -> None:
        """End all processes, also those of running cases, and remove all scratch folders."""
        with self._lock:
            self._closed = True
            servers, self._servers = self._servers, set()
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._owner == os.getpid():
            for server in servers:
                server.close()
            self._threads.shutdown(wait=True)

    def submit(self, case: Case) -> "concurrent.futures.Future[Result]":
        """Score a case on one of the servers.

        Raises:
            RuntimeError: If the executor is closed, or belongs to another process.
        """
        if self._owner != os.getpid():
            raise RuntimeError("an Executor does not survive a fork: make one in each process")
        return self._threads.submit(self._score, case)

    def map(self, cases: Iterable[Case]) -> Iterator[Result]:
        """Score cases; results come in the order of the cases."""
        futures = [self.submit(case) for case in cases]
        try:
            for future in futures:
                yield future.result()
        finally:
            for future in futures:
                future.cancel()

    def _score(self, case: Case) -> Result:
        began = time.monotonic()
        outcomes: list[TestOutcome] = []
        refusal = ""
        try:
            outcomes = self._outcomes(case)
        except (_NothingToRunError, PlanError) as error:
            refusal = str(error)
        except ServerError as error:
            if self._closed:
                raise
            refusal = str(error)
        status = _status(outcomes)
        passed = sum(outcome.kind == "pass" for outcome in outcomes)
        text = "" if status == "pass" else _feedback(case, outcomes, refusal, passed)
        seconds = time.monotonic() - began
        return Result(status, passed, len(case.test_list), text, seconds, self.isolation)

    def _outcomes(self, case: Case) -> list[TestOutcome]:
        """Outcomes of a case's tests; raises `_NothingToRunError`, `PlanError` or `ServerError`."""
        if not case.test_list:
            raise _NothingToRunError("There are no tests, so there is nothing to pass.")
        plan = plan_tests(case.test_list, case.test_imports, case.test_setup_code)
        code = extract_code(case.completion, plan.names)
        if not code:
            raise _NothingToRunError("The completion contains no code.")
        if len(code) > MAX_CODE:
            raise _NothingToRunError(f"The code has {len(code)} characters; at most {MAX_CODE}.")
        submission = Submission(
            code=code,
            imports=case.test_imports,
            setup=case.test_setup_code,
            names=list(plan.names),
        )
        return self._run(submission, plan, case.test_list)

    def _run(
        self, submission: Submission, plan: Plan, tests: tuple[str, ...], attempts: int = _ATTEMPTS
    ) -> list[TestOutcome]:
        server = self._idle.get()
        try:
            outcomes = run_tests(server, submission, plan, tests, self.timeout)
        except ServerError:
            self._discard(server)
            self._idle.put(self._start())
            if attempts == 1:
                raise
            return self._run(submission, plan, tests, attempts - 1)
        self._idle.put(server)
        return outcomes


def _status(outcomes: list[TestOutcome]) -> Status:
    kinds = {outcome.kind for outcome in outcomes}
    if kinds == {"pass"}:
        return "pass"
    if "timeout" in kinds:
        return "timeout"
    return "error" if kinds <= {"error"} else "fail"


def _feedback(case: Case, outcomes: list[TestOutcome], refusal: str, passed: int) -> str:
    total = len(case.test_list)
    if not outcomes:
        return feedback.compose(passed, total, [[refusal]])
    if len(set(outcomes)) == 1 and outcomes[0].for_all_tests:
        return feedback.compose(passed, total, [outcomes[0].lines])
    parts = [
        (feedback.heading(number, "failed", case.test_list[number - 1]), *outcome.lines)
        for number, outcome in enumerate(outcomes, 1)
        if outcome.kind != "pass"
    ]
    return feedback.compose(passed, total, parts)
