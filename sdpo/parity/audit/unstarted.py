"""Audits that could not start, or were lost: one line says why, and nothing else is left."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from msgspec import structs

from sdpo.parity.audit.child_process import Crash, Ended
from sdpo.parity.audit.request import Request
from sdpo.parity.render.plots import FILES
from sdpo.parity.report.run_report import RunReport

RENDERED = ("report.json", "report.md", "report.html", "report.junit.xml", "report.sarif")
_ENDED = "the candidate ended the process ({how}) before the audit was complete"


def unstarted(request: Request, message: str) -> RunReport:
    """Report an audit of which there is only a failure."""
    from sdpo.parity.report.document import failed  # imports torch, which the command avoids

    return failed(request.candidate, request.command, message)


def lost(request: Request, ended: Ended) -> RunReport:
    """Report an audit whose process ended without a report."""
    if isinstance(ended.result, Crash):
        return unstarted(request, ended.result.crash)
    how = f"signal {-ended.code}" if ended.code < 0 else f"exit code {ended.code}"
    return unstarted(request, _ENDED.format(how=how))


def cleared(run: RunReport, folder: Path) -> RunReport:
    """Take away what an earlier audit reported; a log that says something stays and is named."""
    for name in (*RENDERED, *FILES):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "bundles", ignore_errors=True)
    log = folder / "candidate.log"
    if not log.is_file():
        return run
    if log.stat().st_size:
        message = f"{run.message}; what was printed: {log}"
        return structs.replace(run, message=message, reasons=[message])
    log.unlink()
    return run


def absent(folder: Path) -> list[Path]:
    """List the folder and those above it that do not exist, innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def tidy(folders: Iterable[Path]) -> None:
    """Remove those of the folders that are empty, innermost first."""
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
