"""Audits started in processes of their own; their documents are collected, rendered and printed."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdpo.parity.consistency import check
from sdpo.parity.exit_codes import worst_exit_code
from sdpo.parity.history import HistoryError, append
from sdpo.parity.render.html import html_report
from sdpo.parity.render.junit import junit_report
from sdpo.parity.render.markdown import markdown_report
from sdpo.parity.render.plots import FILES, draw_plots, load_ahead
from sdpo.parity.render.sarif import sarif_report
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
    require: Sequence[str] = (),
    coverage: int = 0,
    history: Path | None = None,
    ledger: Path | None = None,
    bundles: int = 0,
) -> int:
    """Audit candidates one after the other, write their reports, print, return the exit code.

    A line for each run is appended to `history`; the draft of a ledger of the one candidate is
    written to `ledger`; `bundles` is the number of failing cases to pack for replay.
    """
    try:
        if ledger is not None and len(candidates) != 1:
            raise UsageError("--write-ledger needs exactly one candidate")
        if ledger is not None and ledger.exists():
            raise UsageError(f"--write-ledger: {ledger} exists; a ledger is never overwritten")
        check_stages("--stages", stages)
        check_stages("--require", require)
        out.mkdir(parents=True, exist_ok=True)
    except UsageError as error:
        return refuse(str(error), as_json)
    except OSError as error:
        return refuse(f"cannot write to {out}: {error.strerror}", as_json)
    runs = []
    load_ahead()
    for candidate in candidates:
        request = {
            "candidate": candidate,
            "goldens": [str(path) for path in goldens],
            "declared": [str(path) for path in declared],
            "stages": list(stages),
            "require": list(require),
            "coverage": coverage,
            "repro": repro(candidate, stages, goldens, declared, require, coverage),
        }
        folder = out / slug(candidate)
        run = run_worker(request, folder)
        add_bundles(run, request, folder, bundles)
        write_reports(run, folder)
        runs.append(run)
        if not as_json:
            show(run, folder, quiet)
        try:
            keep(run, history, ledger)
        except (HistoryError, OSError) as error:
            return refuse(str(error), as_json)
    if as_json:
        print(document(runs))
    return worst_exit_code(run["exit_code"] for run in runs)


def keep(run: dict[str, Any], history: Path | None, ledger: Path | None) -> None:
    """Append a run to a history, and write the draft of its ledger, where asked for.

    Raises:
        HistoryError: the history cannot be written.
        OSError: the ledger cannot be written.
    """
    if history is not None:
        append(history, run)
    if ledger is not None:
        from sdpo.parity.ledger import draft  # imports torch, which the command itself does without

        with ledger.open("x", encoding="utf-8") as file:
            file.write(draft(run))


def show(run: dict[str, Any], folder: Path | None, quiet: bool) -> None:
    """Print a run as text."""
    print(first_line(run) if quiet else text_report(run))
    if folder is not None and not quiet:
        print(f"  report: {folder / 'report.md'}, .html, .json, .junit.xml, .sarif")


def refuse(message: str, as_json: bool) -> int:
    """Print a usage error; the exit code is 2."""
    if as_json:
        print(json.dumps({"schema_version": SCHEMA_VERSION, "runs": [], "error": message}))
    else:
        print(f"ERROR {message}")
    return 2


def check_stages(option: str, stages: Sequence[str]) -> None:
    """Reject names that are no stages.

    Raises:
        UsageError: there is one.
    """
    if unknown := [stage for stage in stages if stage not in NAMES]:
        raise UsageError(f"{option}: unknown stages {unknown}; valid are {', '.join(NAMES)}")


def repro(
    candidate: str,
    stages: Sequence[str],
    goldens: Sequence[Path],
    declared: Sequence[Path],
    require: Sequence[str] = (),
    coverage: int = 0,
) -> str:
    """The command that repeats an audit."""
    words = ["sdpo", "audit", candidate]
    words += ["--stages", ",".join(stages)] if stages else []
    words += ["--require", ",".join(require)] if require else []
    words += ["--coverage", str(coverage)] if coverage else []
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
    log = folder / "candidate.log"
    log.unlink(missing_ok=True)
    run, returncode = in_child(["sdpo.parity.worker"], request, log)
    return run if run is not None else lost(request, returncode)


def in_child(
    arguments: Sequence[str], request: dict[str, Any], log: Path
) -> tuple[dict[str, Any] | None, int]:
    """Run a module in a process of its own: JSON in, JSON out, standard output to the log.

    Returns:
        The result, None if the process ended without one; and its exit code.
    """
    with tempfile.TemporaryDirectory(prefix="sdpo-audit-") as scratch:
        request_file, result_file = Path(scratch) / "request.json", Path(scratch) / "result.json"
        request_file.write_text(json.dumps(request), encoding="utf-8")
        command = [sys.executable, "-m", *arguments, request_file, result_file]
        with log.open("ab") as output:
            process = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, check=False)
        if result_file.exists():
            return json.loads(result_file.read_text(encoding="utf-8")), process.returncode
    return None, process.returncode


def add_bundles(run: dict[str, Any], request: dict[str, Any], folder: Path, count: int) -> None:
    """Write bundles of failing cases, in a further process, and list them in the run."""
    shutil.rmtree(folder / "bundles", ignore_errors=True)
    family = "trainer" if run["kind"] == "trainer" else "loss"
    failing = [
        (case["id"], case["first_stage"]) if family == "trainer" else case["id"]
        for case in run["cases"]
        if case["family"] == family and case["status"] in ("DIVERGENT", "ERROR")
    ]
    if not failing or not count or not run["kind"].startswith(family):
        return
    wanted = {
        "candidate": request["candidate"],
        "goldens": request["goldens"],
        "command": request["repro"],
        "cases": failing,
        "folder": str(folder / "bundles"),
        "count": count,
    }
    made, returncode = in_child(["sdpo.parity.bundler", "make"], wanted, folder / "candidate.log")
    problem = made["problem"] if made else f"the process ended with exit code {returncode}"
    if problem:
        run["notes"].append(f"no replay bundles: {problem}")
        return
    assert made is not None
    run["bundles"] = made["bundles"]
    if more := len(failing) - len(run["bundles"]):
        run["notes"].append(f"{more} more failing cases have no replay bundle: raise --bundles")


def lost(request: dict[str, Any], returncode: int) -> dict[str, Any]:
    """The RUN document of an audit whose process ended without one."""
    from sdpo.parity.report import failed

    how = f"signal {-returncode}" if returncode < 0 else f"exit code {returncode}"
    message = f"the candidate ended the process ({how}) before the audit was complete"
    run = failed(request["candidate"], request["repro"], message)
    return run | {"environment": {}, "created": "", "seconds": 0.0}


def document(runs: Sequence[dict[str, Any]]) -> str:
    """The one JSON document of some runs."""
    return json.dumps({"schema_version": SCHEMA_VERSION, "runs": list(runs)}, ensure_ascii=False)


def write_reports(run: dict[str, Any], folder: Path) -> None:
    """Write `report.json` and its renderings; plots of an earlier run do not stay.

    Raises:
        InconsistentReportError: the document contradicts itself; nothing is written.
    """
    check(run)
    (folder / "report.json").write_text(document([run]) + "\n", encoding="utf-8")
    for file in FILES:
        (folder / file).unlink(missing_ok=True)
    plots = draw_plots(run)
    for plot in plots:
        (folder / plot.file).write_bytes(plot.png)
    (folder / "report.md").write_text(markdown_report(run, plots), encoding="utf-8")
    (folder / "report.html").write_text(html_report(run, plots), encoding="utf-8")
    (folder / "report.junit.xml").write_text(junit_report(run), encoding="utf-8")
    (folder / "report.sarif").write_text(sarif_report(run), encoding="utf-8")
