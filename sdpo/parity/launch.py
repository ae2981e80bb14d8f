"""Audits started in processes of their own; their documents are collected, rendered and printed."""

import json
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdpo.parity.exit_codes import worst_exit_code
from sdpo.parity.render.html import html_report
from sdpo.parity.render.markdown import markdown_report
from sdpo.parity.render.plots import FILES, draw_plots
from sdpo.parity.render.text import first_line, text_report
from sdpo.parity.stages import NAMES

SCHEMA_VERSION = 1


class UsageError(Exception):
    """The request makes no sense; the message says why."""


def audit_all(
    candidates: Sequence[str],
    *,
    stages: Sequence[str],
    goldens: Sequence[Path],
    declared: Sequence[Path],
    out: Path,
    as_json: bool,
    quiet: bool,
) -> int:
    """Audit candidates one after the other, write their reports, print, return the exit code."""
    try:
        check_stages(stages)
        out.mkdir(parents=True, exist_ok=True)
    except UsageError as error:
        return refuse(str(error), as_json)
    except OSError as error:
        return refuse(f"cannot write to {out}: {error.strerror}", as_json)
    runs = []
    for candidate in candidates:
        request = {
            "candidate": candidate,
            "goldens": [str(path) for path in goldens],
            "declared": [str(path) for path in declared],
            "stages": list(stages),
            "repro": repro(candidate, stages, goldens, declared),
        }
        folder = out / slug(candidate)
        run = run_worker(request, folder)
        write_reports(run, folder)
        runs.append(run)
        if not as_json:
            print(first_line(run) if quiet else text_report(run))
            if not quiet:
                print(f"  report: {folder / 'report.md'}, report.html, report.json")
    if as_json:
        print(document(runs))
    return worst_exit_code(run["exit_code"] for run in runs)


def refuse(message: str, as_json: bool) -> int:
    """Print a usage error; the exit code is 2."""
    if as_json:
        print(json.dumps({"schema_version": SCHEMA_VERSION, "runs": [], "error": message}))
    else:
        print(f"ERROR {message}")
    return 2


def check_stages(stages: Sequence[str]) -> None:
    """Reject names that are no stages.

    Raises:
        UsageError: there is one.
    """
    if unknown := [stage for stage in stages if stage not in NAMES]:
        raise UsageError(f"--stages: unknown stages {unknown}; valid are {', '.join(NAMES)}")


def repro(
    candidate: str, stages: Sequence[str], goldens: Sequence[Path], declared: Sequence[Path]
) -> str:
    """The command that repeats an audit."""
    words = ["sdpo", "audit", candidate]
    words += ["--stages", ",".join(stages)] if stages else []
    for path in goldens:
        words += ["--goldens", str(path)]
    for path in declared:
        words += ["--declared", str(path)]
    return shlex.join(words)


def slug(candidate: str) -> str:
    """A folder name for a candidate."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", candidate).strip("-.") or "candidate"


def run_worker(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run one audit in a process of its own; what the candidate prints goes to `candidate.log`."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="sdpo-audit-") as scratch:
        request_file, result_file = Path(scratch) / "request.json", Path(scratch) / "result.json"
        request_file.write_text(json.dumps(request), encoding="utf-8")
        command = [sys.executable, "-m", "sdpo.parity.worker", request_file, result_file]
        with (folder / "candidate.log").open("wb") as log:
            process = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, check=False)
        if result_file.exists():
            return json.loads(result_file.read_text(encoding="utf-8"))
    return lost(request, process.returncode)


def lost(request: dict[str, Any], returncode: int) -> dict[str, Any]:
    """The RUN document of an audit whose process ended without one."""
    from sdpo.parity.audit import Request, failed

    how = f"signal {-returncode}" if returncode < 0 else f"exit code {returncode}"
    message = f"the candidate ended the process ({how}) before the audit was complete"
    run = failed(Request.from_fields(request), message)
    return run | {"environment": {}, "created": "", "seconds": 0.0}


def document(runs: Sequence[dict[str, Any]]) -> str:
    """The one JSON document of some runs."""
    return json.dumps({"schema_version": SCHEMA_VERSION, "runs": list(runs)}, ensure_ascii=False)


def write_reports(run: dict[str, Any], folder: Path) -> None:
    """Write `report.json` and its renderings; plots of an earlier run do not stay."""
    (folder / "report.json").write_text(document([run]) + "\n", encoding="utf-8")
    for file in FILES:
        (folder / file).unlink(missing_ok=True)
    plots = draw_plots(run)
    for plot in plots:
        (folder / plot.file).write_bytes(plot.png)
    (folder / "report.md").write_text(markdown_report(run, plots), encoding="utf-8")
    (folder / "report.html").write_text(html_report(run, plots), encoding="utf-8")
