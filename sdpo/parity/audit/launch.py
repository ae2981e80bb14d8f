"""Audits started in processes of their own; their reports are collected, rendered and printed."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from msgspec import Struct, structs

from sdpo.parity.audit.child_process import Crash, Ended, run_child
from sdpo.parity.audit.report_files import absent, cleared, document, tidy, write_reports
from sdpo.parity.audit.request import Request, UsageError
from sdpo.parity.cases.failure import described, refuse
from sdpo.parity.compare.statuses import worst_exit_code
from sdpo.parity.render.plots import load_ahead
from sdpo.parity.render.text import error_line, first_line, text_report
from sdpo.parity.report.history import HistoryError, append
from sdpo.parity.report.report_rows import BundleRow
from sdpo.parity.report.run_report import RunReport

_ENDED = "the candidate ended the process ({how}) before the audit was complete"


@dataclass(frozen=True)
class Outputs:
    """Where the results of audits go.

    Attributes:
        folder: of the reports.
        as_json: print one JSON document instead of texts.
        quiet: print one line for each candidate.
        history: a file to which a line for each run is appended.
        ledger: a new file for the draft of a ledger of the one candidate.
        bundles: how many failing cases are packed for replay.
    """

    folder: Path
    as_json: bool = False
    quiet: bool = False
    history: Path | None = None
    ledger: Path | None = None
    bundles: int = 0


class BundlesRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Failing cases to pack: ids with the stage at which each first departs."""

    candidate: str
    goldens: tuple[str, ...]
    command: str
    cases: tuple[tuple[str, str | None], ...]
    folder: str
    count: int


class BundlesMade(Struct, frozen=True, forbid_unknown_fields=True):
    """The bundles that were written, or why there are none."""

    bundles: list[BundleRow]
    problem: str = ""


def audit_all(
    requests: Sequence[Request],
    outputs: Outputs,
    each: Callable[[RunReport], None] = lambda run: None,
) -> int:
    """Audit candidates one after the other, write their reports, print, return the exit code.

    Of an audit that cannot start nothing is written; the others still run.

    Args:
        requests: one for each candidate.
        outputs: where the results go.
        each: gets every report of a candidate.
    """
    made = absent(outputs.folder)
    try:
        _check(requests, outputs)
    except UsageError as error:
        only = requests[0].candidate if len(requests) == 1 else ""
        return _refuse_audit(str(error), only, outputs.as_json)
    runs: list[RunReport] = []
    problems = []
    load_ahead()
    for request in requests:
        run, folder, problem = _audited(request, outputs)
        runs.append(run)
        each(run)
        if problem:
            problems.append(problem)
        if not outputs.as_json:
            _tell(run, folder, problem, outputs.quiet)
    tidy([*(outputs.folder / request.folder for request in requests), *made])
    if outputs.as_json:
        print(document(runs, error="; ".join(dict.fromkeys(problems))))
    return worst_exit_code([*(run.exit_code for run in runs), *(2 for _ in problems)])


def _check(requests: Sequence[Request], outputs: Outputs) -> None:
    """Refuse what makes no sense before anything runs, and make the folder of the reports.

    Raises:
        UsageError: it makes no sense, or the folder cannot be made.
    """
    if outputs.ledger is not None and len(requests) != 1:
        raise UsageError("--write-ledger needs exactly one candidate")
    if outputs.ledger is not None and outputs.ledger.exists():
        raise UsageError(f"--write-ledger: {outputs.ledger} exists; a ledger is never overwritten")
    for request in requests:
        request.check()
    try:
        outputs.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {outputs.folder}: {error.strerror}") from error


def _audited(request: Request, outputs: Outputs) -> tuple[RunReport, Path | None, str]:
    """Audit one candidate and write what belongs to it.

    Returns:
        The report; the folder of its renderings, None without any; and why something could not be
        written, empty if all was.
    """
    folder = outputs.folder / request.folder
    try:
        run = run_worker(request, folder)
        if not run.started:
            return cleared(run, folder), None, ""
    except OSError as error:
        return unstarted(request, f"cannot write to {folder}: {described(error)}"), None, ""
    try:
        run = _with_bundles(run, request, folder, outputs.bundles)
        write_reports(run, folder)
    except OSError as error:
        return run, None, f"cannot write to {folder}: {described(error)}"
    try:
        keep(run, outputs)
    except (HistoryError, OSError) as error:
        return run, folder, str(error)
    return run, folder, ""


def keep(run: RunReport, outputs: Outputs) -> None:
    """Append a run to a history, and write the draft of its ledger, where asked for.

    Raises:
        HistoryError: the history cannot be written.
        OSError: the ledger cannot be written.
    """
    if outputs.history is not None:
        append(outputs.history, run)
    if outputs.ledger is not None:
        from sdpo.parity.report.draft_ledger import (
            draft,  # imports torch, which the command itself does without
        )

        with outputs.ledger.open("x", encoding="utf-8") as file:
            file.write(draft(run))


def show(run: RunReport, folder: Path | None, quiet: bool) -> None:
    """Print a run as text."""
    print(first_line(run) if quiet else text_report(run, str(folder or "")))
    if folder is not None and not quiet:
        print(f"  report: {folder / 'report.md'}, .html, .json, .junit.xml, .sarif")


def _tell(run: RunReport, folder: Path | None, problem: str, quiet: bool) -> None:
    """Print a run as text, below what could not be written of it."""
    if problem:
        print(error_line(run.candidate, f"{problem}; the verdict was {run.verdict}"))
    show(run, folder, quiet)


def _refuse_audit(message: str, candidate: str, as_json: bool) -> int:
    """Print why no audit was begun; the exit code is 2. `candidate` is empty for several."""
    if as_json or not candidate:
        return refuse(message, as_json)
    print(error_line(candidate, message))
    return 2


def run_worker(request: Request, folder: Path) -> RunReport:
    """Run one audit in a process of its own; what the candidate prints goes to `candidate.log`."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "candidate.log"
    log.unlink(missing_ok=True)
    ended = run_child(["sdpo.parity.audit.worker"], request, log, RunReport)
    return lost(request, ended) if ended.problem else ended.result


def unstarted(request: Request, message: str) -> RunReport:
    """Report an audit of which there is only a failure."""
    from sdpo.parity.report.document import failed  # imports torch, which the command avoids

    return failed(request.candidate, request.command, message)


def lost(request: Request, ended: Ended) -> RunReport:
    """Report an audit whose process ended without a report."""
    if isinstance(ended.result, Crash):
        return unstarted(request, ended.result.crash)
    if ended.hung:
        limit = f"within {request.timeout:g} s (--timeout)"
        return unstarted(request, f"{ended.hung} did not return {limit}; it cannot be interrupted")
    how = f"signal {-ended.code}" if ended.code < 0 else f"exit code {ended.code}"
    return unstarted(request, _ENDED.format(how=how))


def _with_bundles(run: RunReport, request: Request, folder: Path, count: int) -> RunReport:
    """Write bundles of failing cases, in a further process, and list them in the report."""
    shutil.rmtree(folder / "bundles", ignore_errors=True)
    family: Literal["trainer", "loss"] = "trainer" if run.kind == "trainer" else "loss"
    failing = [case for case in run.failing_cases if case.family == family]
    if not failing or not count or not run.kind.startswith(family):
        return run
    wanted = BundlesRequest(
        request.candidate,
        request.goldens,
        request.command,
        tuple((case.id, case.first_stage) for case in failing),
        str(folder / "bundles"),
        count,
    )
    module = ["sdpo.parity.bundles.make_and_replay", "make"]
    ended = run_child(module, wanted, folder / "candidate.log", BundlesMade)
    if problem := ended.problem or ended.result.problem:
        return structs.replace(run, notes=[*run.notes, f"no replay bundles: {problem}"])
    notes = list(run.notes)
    if more := len(failing) - len(ended.result.bundles):
        notes.append(f"{more} more failing cases have no replay bundle: raise --bundles")
    return structs.replace(run, bundles=ended.result.bundles, notes=notes)
