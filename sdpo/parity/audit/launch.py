"""Audits started in processes of their own; their documents are collected, rendered and printed."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sdpo.parity.audit.unstarted import absent, cleared, lost, tidy, unstarted
from sdpo.parity.cases.failure import described, refuse
from sdpo.parity.cases.stages import NAMES
from sdpo.parity.compare.statuses import FAILING, worst_exit_code
from sdpo.parity.render.html import html_report
from sdpo.parity.render.junit import junit_report
from sdpo.parity.render.markdown import markdown_report
from sdpo.parity.render.plots import FILES, draw_plots, load_ahead
from sdpo.parity.render.sarif import sarif_report
from sdpo.parity.render.text import RUN, error_line, first_line, started, text_report
from sdpo.parity.report.history import HistoryError, append
from sdpo.parity.report.validate import check

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
    each: Callable[[RUN], None] = lambda run: None,
) -> int:
    """Audit candidates one after the other, write their reports, print, return the exit code.

    A line for each run is appended to `history`; the draft of a ledger of the one candidate is
    written to `ledger`; `bundles` is the number of failing cases to pack for replay; `each` gets
    every RUN document. Of an audit that cannot start nothing is written; the others still run.
    """
    only = candidates[0] if len(candidates) == 1 else ""
    made = absent(out)
    try:
        if ledger is not None and not only:
            raise UsageError("--write-ledger needs exactly one candidate")
        if ledger is not None and ledger.exists():
            raise UsageError(f"--write-ledger: {ledger} exists; a ledger is never overwritten")
        check_stages("--stages", stages)
        check_stages("--require", require)
        out.mkdir(parents=True, exist_ok=True)
    except UsageError as error:
        return refuse_audit(str(error), only, as_json)
    except OSError as error:
        return refuse_audit(f"cannot write to {out}: {error.strerror}", only, as_json)
    runs: list[RUN] = []
    problems = []
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
        kept = partial(keep, history=history, ledger=ledger)
        run, folder, problem = audited(request, out, bundles, kept)
        runs.append(run)
        each(run)
        problems += [problem] * bool(problem)
        if not as_json:
            tell(run, folder, problem, quiet)
    tidy([*(out / slug(candidate) for candidate in candidates), *made])
    if as_json:
        print(document(runs, error="; ".join(dict.fromkeys(problems))))
    return worst_exit_code([*(run["exit_code"] for run in runs), *([2] * len(problems))])


def audited(
    request: dict[str, Any], out: Path, bundles: int, kept: Callable[[RUN], None]
) -> tuple[RUN, Path | None, str]:
    """Audit one candidate and write what belongs to it.

    Returns:
        The RUN document; the folder of its reports, None without any; and why something could not
        be written, empty if all was.
    """
    folder = out / slug(request["candidate"])
    try:
        run = run_worker(request, folder)
        if not started(run):
            return cleared(run, folder), None, ""
    except OSError as error:
        return unstarted(request, f"cannot write to {folder}: {described(error)}"), None, ""
    try:
        add_bundles(run, request, folder, bundles)
        write_reports(run, folder)
    except OSError as error:
        return run, None, f"cannot write to {folder}: {described(error)}"
    try:
        kept(run)
    except (HistoryError, OSError) as error:
        return run, folder, str(error)
    return run, folder, ""


def keep(run: RUN, history: Path | None, ledger: Path | None) -> None:
    """Append a run to a history, and write the draft of its ledger, where asked for.

    Raises:
        HistoryError: the history cannot be written.
        OSError: the ledger cannot be written.
    """
    if history is not None:
        append(history, run)
    if ledger is not None:
        from sdpo.parity.report.draft_ledger import (
            draft,  # imports torch, which the command itself does without
        )

        with ledger.open("x", encoding="utf-8") as file:
            file.write(draft(run))


def show(run: dict[str, Any], folder: Path | None, quiet: bool) -> None:
    """Print a run as text."""
    print(first_line(run) if quiet else text_report(run))
    if folder is not None and not quiet:
        print(f"  report: {folder / 'report.md'}, .html, .json, .junit.xml, .sarif")


def tell(run: RUN, folder: Path | None, problem: str, quiet: bool) -> None:
    """Print a run as text, below what could not be written of it."""
    if problem:
        print(error_line(run["candidate"], f"{problem}; the verdict was {run['verdict']}"))
    show(run, folder, quiet)


def refuse_audit(message: str, candidate: str, as_json: bool) -> int:
    """Print why no audit was begun; the exit code is 2. `candidate` is empty for several."""
    if as_json or not candidate:
        return refuse(message, as_json)
    print(error_line(candidate, message))
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
    run, returncode = in_child(["sdpo.parity.audit.worker"], request, log)
    return lost(request, run, returncode) if run is None or "crash" in run else run


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
        if case["family"] == family and case["status"] in FAILING
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
    made, returncode = in_child(
        ["sdpo.parity.bundles.make_and_replay", "make"], wanted, folder / "candidate.log"
    )
    problem = f"the process ended with exit code {returncode}"
    if made:
        problem = made.get("crash") or made["problem"]
    if problem:
        run["notes"].append(f"no replay bundles: {problem}")
        return
    assert made is not None
    run["bundles"] = made["bundles"]
    if more := len(failing) - len(run["bundles"]):
        run["notes"].append(f"{more} more failing cases have no replay bundle: raise --bundles")


def document(runs: Sequence[RUN], *, error: str = "") -> str:
    """The one JSON document of some runs, in ASCII; `error` is what could not be written."""
    return json.dumps(wrapped(runs) | ({"error": error} if error else {}))


def wrapped(runs: Sequence[RUN]) -> dict[str, Any]:
    """Some runs as one document."""
    return {"schema_version": SCHEMA_VERSION, "runs": list(runs)}


def write_reports(run: dict[str, Any], folder: Path) -> None:
    """Write `report.json` and its renderings; plots of an earlier run do not stay.

    Raises:
        InconsistentReportError: the document contradicts itself; nothing is written.
    """
    check(run)
    text = json.dumps(wrapped([run]), ensure_ascii=False) + "\n"
    (folder / "report.json").write_text(text, encoding="utf-8")
    for file in FILES:
        (folder / file).unlink(missing_ok=True)
    plots = draw_plots(run)
    for plot in plots:
        (folder / plot.file).write_bytes(plot.png)
    (folder / "report.md").write_text(markdown_report(run, plots), encoding="utf-8")
    (folder / "report.html").write_text(html_report(run, plots), encoding="utf-8")
    (folder / "report.junit.xml").write_text(junit_report(run), encoding="utf-8")
    (folder / "report.sarif").write_text(sarif_report(run), encoding="utf-8")
