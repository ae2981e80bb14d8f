"""An audit called from Python: what `sdpo audit` does, for a function, with a typed report."""

import inspect
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from sdpo.parity.audit.launch import run_worker
from sdpo.parity.audit.report_files import cleared, write_reports
from sdpo.parity.audit.request import MIN_CASES, Request, UsageError
from sdpo.parity.capabilities.declared import Capabilities, checked
from sdpo.parity.render.text import front
from sdpo.parity.report.run_report import RunReport
from sdpo.runtime.time_limit import TIMEOUT

__all__ = ["Candidate", "assert_parity", "audit", "candidate_name"]

Candidate = str | Callable[..., object]
"""A function or class, or the name of a candidate as `sdpo audit` takes it."""


def audit(
    candidate: Candidate,
    *,
    stages: Sequence[str] = (),
    declared: Sequence[str | Path] = (),
    goldens: Sequence[str | Path] = (),
    require: Sequence[str] = (),
    coverage: int = 0,
    min_cases: int = MIN_CASES,
    capabilities: Capabilities | None = None,
    timeout: float = TIMEOUT,
    out: str | Path | None = None,
) -> RunReport:
    """Audit a candidate in a process of its own and return the report.

    The process imports the candidate anew, with the import path of this one. A function or class
    must therefore stand at the top of a module; in a script, keep the call behind
    `if __name__ == "__main__":`.

    Args:
        candidate: a function or class, or its name as `sdpo audit` takes it: `sdpo`, `trl`,
            `FILE.py:attr`, `pkg.mod:attr`.
        stages: only these are judged; all if empty.
        declared: ledgers of declared deviations, by path or packaged name.
        goldens: folders of golden data; the packaged ones if empty.
        require: stages without which no pass is given, beside those the candidate claims.
        coverage: how many stages must be covered at least.
        min_cases: how many cases must be compared at least; more than half where few ran.
        capabilities: what the candidate can be asked, beside what it declares itself.
        timeout: seconds that a call of a loss function may take; 0 for any time.
        out: folder to which the reports are written, in a folder named after the candidate; None
            for no files.

    Returns:
        The typed report: `verdict`, `exit_code`, `stages`, `cases`, …; `started` is False and
        `message` says why where the candidate could not be audited.

    Raises:
        UsageError: a candidate that is at the top of no module, or stages that there are not.
    """
    request = Request(
        candidate_name(candidate),
        goldens=tuple(map(str, goldens)),
        declared=tuple(map(str, declared)),
        stages=tuple(stages),
        require=tuple(require),
        coverage=coverage,
        min_cases=min_cases,
        capabilities=capabilities,
        timeout=timeout,
    )
    request.check()
    with nullcontext(out) if out is not None else tempfile.TemporaryDirectory() as base:
        folder = Path(base) / request.folder
        with _same_imports():
            run = run_worker(request, folder)
        if not run.started:
            return cleared(run, folder)
        if out is not None:
            write_reports(run, folder)
    return run


def assert_parity(
    candidate: Candidate,
    *,
    stages: Sequence[str] = (),
    declared: Sequence[str | Path] = (),
    min_cases: int = MIN_CASES,
    timeout: float = TIMEOUT,
    **knobs: object,
) -> RunReport:
    """Audit a loss in a test, and fail with the diagnosis unless it agrees with the reference.

    `sdpo.assert_parity(my_loss, alpha={0.5}, topk=False)`: all other keywords say what the loss can
    be asked, as `sdpo.capabilities` does.

    Args:
        candidate: as of `audit`.
        stages: only these are judged; all if empty.
        declared: ledgers of declared deviations, by path or packaged name.
        min_cases: how many cases must be compared at least; more than half where few ran.
        timeout: seconds that a call may take; 0 for any time.
        **knobs: what the loss can be asked.

    Returns:
        The typed report of a PASS or of a DECLARED.

    Raises:
        AssertionError: another verdict; the message is the diagnosis.
        CapabilitiesError: an unknown knob, or a value that it cannot have.
        UsageError: a candidate that is at the top of no module, or stages that there are not.
    """
    __tracebackhide__ = True
    run = audit(
        candidate,
        stages=stages,
        declared=declared,
        min_cases=min_cases,
        timeout=timeout,
        capabilities=checked(knobs, "assert_parity") if knobs else None,
    )
    if run.exit_code:
        raise AssertionError(front(run))
    return run


def candidate_name(candidate: Candidate) -> str:
    """Name a candidate for another process: `FILE.py:qualified.name` of a function or class.

    Raises:
        UsageError: it is at the top of no module that has a file.
    """
    if isinstance(candidate, str):
        return candidate
    try:
        file = inspect.getsourcefile(inspect.unwrap(candidate))
    except TypeError:
        file = None
    name = getattr(candidate, "__qualname__", "<locals>")
    if file is None or not Path(file).is_file() or "<" in name:
        raise UsageError(
            f"{candidate!r} is not at the top of a module with a file, so that another process "
            "cannot import it; define it there, or give FILE.py:attr"
        )
    return f"{file}:{name}"


@contextmanager
def _same_imports() -> Iterator[None]:
    """Let processes that are started find modules where this one does, for a while."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
