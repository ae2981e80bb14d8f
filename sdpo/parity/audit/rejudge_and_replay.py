"""Reports judged again, and bundles replayed: what was seen before is the starting point."""

import json
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct, structs

from sdpo.parity.audit.child_process import run_child
from sdpo.parity.audit.launch import show
from sdpo.parity.audit.report_files import document, write_reports
from sdpo.parity.audit.request import UsageError, check_stages, folder_name
from sdpo.parity.cases.failure import refuse
from sdpo.parity.compare.statuses import Status, Verdict, worst_exit_code
from sdpo.parity.render.text import one_line
from sdpo.parity.report.judgement import number
from sdpo.parity.report.report_context import Environment, Seen
from sdpo.parity.report.report_rows import Place, Size
from sdpo.parity.report.run_report import ExitCode, ReportError, RunReport, read_report


class ReplayRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """The archive to replay; another candidate than the bundle's, or empty for that one."""

    bundle: str
    candidate: str = ""


class ReplayedComparison(Struct, frozen=True, forbid_unknown_fields=True):
    """One value of one stage, and where the reference computes it."""

    stage: str
    status: Status
    max_abs: Size
    budget_used: Size
    worst: Place
    reference: str


class ReplayResult(Struct, frozen=True, forbid_unknown_fields=True):
    """The document that `sdpo replay --json` prints."""

    schema_version: Literal[1]
    candidate: str
    case: str
    verdict: Verdict
    exit_code: ExitCode
    first_stage: str | None
    note: str
    replay: Literal["same", "different"]
    seen_then: Seen
    comparisons: list[ReplayedComparison]
    environment: Environment
    environment_differs: dict[str, tuple[Any, Any]]
    size: str


def regate_all(
    report: Path,
    *,
    stages: Sequence[str] = (),
    require: Sequence[str] = (),
    coverage: int = 0,
    min_cases: int = 0,
    declared: Sequence[Path] | None = None,
    budget: float | None = None,
    out: Path | None = None,
    as_json: bool = False,
    quiet: bool = False,
) -> int:
    """Judge the runs of a report again, print, and return the exit code.

    What is empty or None stays as the report was judged.

    Args:
        report: a `report.json`.
        stages: only these are judged.
        require: stages without which no pass is given.
        coverage: how many stages must be covered at least.
        min_cases: how many cases must be compared at least; more than half where few ran.
        declared: ledgers in place of the report's.
        budget: share of its budget that an element may use.
        out: folder for the reports of the new verdict; nothing is written if None.
        as_json: print one JSON document.
        quiet: print one line for each candidate.
    """
    from sdpo.parity.report.declared_deviations import DeclaredError, load_for
    from sdpo.parity.report.rejudge import policy_of, regate, tightened

    runs: list[RunReport] = []
    try:
        check_stages("--stages", stages)
        check_stages("--require", require)
        entries = load_for([str(path) for path in declared]) if declared else []
        for run in read_report(report).runs:
            policy = tightened(policy_of(run), budget)
            limits = structs.replace(
                policy.limits,
                stages=tuple(stages) or policy.limits.stages,
                require=tuple(require) or policy.limits.require,
                coverage=coverage or policy.limits.coverage,
                min_cases=min_cases or policy.limits.min_cases,
            )
            ledger = policy.declared if declared is None else tuple(entries)
            runs.append(regate(run, replace(policy, declared=ledger, limits=limits)))
    except (UsageError, ReportError, DeclaredError) as error:
        return refuse(str(error), as_json)
    for run in runs:
        folder = out / folder_name(run.candidate) if out and run.started else None
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            write_reports(run, folder)
        if not as_json:
            show(run, folder, quiet)
    if as_json:
        print(document(runs))
    return worst_exit_code(run.exit_code for run in runs)


def replay_one(bundle: Path, candidate: str, *, as_json: bool, log: Path | None = None) -> int:
    """Run the case of a bundle again, print whether the verdict is the same, return its exit code.

    Args:
        bundle: the archive.
        candidate: another candidate than the bundle's; empty for that one.
        as_json: print the whole document.
        log: file for what the candidate prints; thrown away if None.
    """
    if problem := _unreadable(bundle):
        return refuse(problem, as_json)
    with tempfile.TemporaryDirectory(prefix="sdpo-replay-") as scratch:
        output = Path(scratch) / "candidate.log"
        request = ReplayRequest(str(bundle), candidate)
        module = ["sdpo.parity.bundles.make_and_replay", "replay"]
        ended = run_child(module, request, output, ReplayResult)
        if log is not None:
            shutil.copyfile(output, log)
    if ended.result is None:
        return refuse(f"the candidate ended the process (exit code {ended.code})", as_json)
    if ended.problem:
        return refuse(ended.problem, as_json)
    result = ended.result
    print(json.dumps(msgspec.to_builtins(result)) if as_json else replay_text(result))
    return result.exit_code


def _unreadable(bundle: Path) -> str:
    """Say why a file cannot be an archive, before a process is started; empty if it may be."""
    try:
        with bundle.open("rb") as file:
            archive = zipfile.is_zipfile(file)
    except OSError as error:
        return f"cannot read {bundle}: {error.strerror}"
    return "" if archive else f"{bundle} is no zip archive, or damaged"


def replay_text(result: ReplayResult) -> str:
    """Print the result of a replay to a text; the verdict comes first."""
    first = [result.verdict, f"candidate={result.candidate}", f"case={result.case}"]
    first += [f"first={result.first_stage}"] if result.first_stage else []
    first += [f"replay={result.replay}"]
    then = result.seen_then
    lines = [
        " ".join(first),
        f"  {result.size}",
        f"  then: {then.status} at {then.first_stage}: {one_line(then.note)}",
        f"  now:  {one_line(result.note) or result.verdict}",
    ]
    for row in result.comparisons:
        worst = row.worst
        place = f", {worst['actual']} instead of {worst['expected']}" if worst else ""
        lines.append(
            f"  {row.stage:<10} {row.status:<10} max |Δ| {number(row.max_abs)}{place}"
            f"  (reference: {row.reference})"
        )
    for name, (before, now) in result.environment_differs.items():
        lines.append(f"  {name} was {before}, is {now}")
    return "\n".join(lines)
