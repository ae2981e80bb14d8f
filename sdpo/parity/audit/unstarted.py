"""Audits that could not start, or were lost: one line says why, and nothing else is left."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sdpo.parity.render.plots import FILES

RENDERED = ("report.json", "report.md", "report.html", "report.junit.xml", "report.sarif")
ENDED = "the candidate ended the process ({how}) before the audit was complete"


def unstarted(request: Mapping[str, Any], message: str) -> dict[str, Any]:
    """The RUN document of an audit of which there is only a failure."""
    from sdpo.parity.report.document import failed

    run = failed(request["candidate"], request["repro"], message)
    return run | {"environment": {}, "created": "", "seconds": 0.0}


def lost(request: Mapping[str, Any], result: Mapping[str, Any] | None, code: int) -> dict[str, Any]:
    """The RUN document of an audit whose process ended without one.

    Args:
        request: what was asked for.
        result: what the process left: None, or what failed in it.
        code: its exit code.
    """
    if result is not None:
        return unstarted(request, result["crash"])
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return unstarted(request, ENDED.format(how=how))


def cleared(run: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Take away what an earlier audit reported; a log that says something stays and is named."""
    for name in (*RENDERED, *FILES):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "bundles", ignore_errors=True)
    log = folder / "candidate.log"
    if not log.is_file():
        return run
    if log.stat().st_size:
        message = f"{run['message']}; what was printed: {log}"
        return run | {"message": message, "reasons": [message]}
    log.unlink()
    return run


def absent(folder: Path) -> list[Path]:
    """The folder and those above it that do not exist, innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def tidy(folders: Iterable[Path]) -> None:
    """Remove those of the folders that are empty, innermost first."""
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
