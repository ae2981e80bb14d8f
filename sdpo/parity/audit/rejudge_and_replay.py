"""Reports judged again, and bundles replayed: what was seen before is the starting point."""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdpo.parity.audit.launch import (
    UsageError,
    check_stages,
    document,
    in_child,
    show,
    slug,
    write_reports,
)
from sdpo.parity.cases.failure import refuse
from sdpo.parity.compare.statuses import worst_exit_code
from sdpo.parity.render.text import number, one_line, started


def regate_all(
    report: Path,
    *,
    stages: Sequence[str],
    require: Sequence[str],
    coverage: int,
    declared: Sequence[Path] | None,
    budget: float | None,
    out: Path | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Judge the runs of a report again, print, and return the exit code; writes to `out` if given.

    What is empty or None stays as the report was judged.
    """
    from sdpo.parity.audit.child_process import plain
    from sdpo.parity.report.declared_deviations import DeclaredError, load_for
    from sdpo.parity.report.rejudge import ReportError, policy_of, read_runs, regate, tightened

    runs = []
    try:
        check_stages("--stages", stages)
        check_stages("--require", require)
        entries = load_for([str(path) for path in declared]) if declared else []
        for run in read_runs(report):
            policy = tightened(policy_of(run), budget)
            policy = replace(
                policy,
                declared=policy.declared if declared is None else tuple(entries),
                stages=tuple(stages) or policy.stages,
                require=tuple(require) or policy.require,
                coverage=coverage or policy.coverage,
            )
            runs.append(plain(regate(run, policy)))
    except (UsageError, ReportError, DeclaredError) as error:
        return refuse(str(error), as_json)
    for run in runs:
        folder = out / slug(run["candidate"]) if out and started(run) else None
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            write_reports(run, folder)
        if not as_json:
            show(run, folder, quiet)
    if as_json:
        print(document(runs))
    return worst_exit_code(run["exit_code"] for run in runs)


def replay_one(bundle: Path, candidate: str, *, as_json: bool, log: Path | None = None) -> int:
    """Run the case of a bundle again, print whether the verdict is the same, return its exit code.

    Args:
        bundle: the archive.
        candidate: another candidate than the bundle's; empty for that one.
        as_json: print the whole document.
        log: file for what the candidate prints; thrown away if None.
    """
    import json

    if problem := unreadable(bundle):
        return refuse(problem, as_json)
    with tempfile.TemporaryDirectory(prefix="sdpo-replay-") as scratch:
        output = Path(scratch) / "candidate.log"
        request = {"bundle": str(bundle), "candidate": candidate}
        found, returncode = in_child(
            ["sdpo.parity.bundles.make_and_replay", "replay"], request, output
        )
        if log is not None:
            shutil.copyfile(output, log)
    if found is None:
        return refuse(f"the candidate ended the process (exit code {returncode})", as_json)
    if problem := found.get("crash") or found.get("problem"):
        return refuse(problem, as_json)
    print(json.dumps(found) if as_json else replay_text(found))
    return found["exit_code"]


def unreadable(bundle: Path) -> str:
    """Why a file cannot be an archive, before a process is started for it; empty if it may be."""
    import zipfile

    try:
        with bundle.open("rb") as file:
            archive = zipfile.is_zipfile(file)
    except OSError as error:
        return f"cannot read {bundle}: {error.strerror}"
    return "" if archive else f"{bundle} is no zip archive, or damaged"


def replay_text(found: dict[str, Any]) -> str:
    """The result of a replay; the verdict comes first, as everywhere."""
    first = [found["verdict"], f"candidate={found['candidate']}", f"case={found['case']}"]
    first += [f"first={found['first_stage']}"] if found["first_stage"] else []
    first += [f"replay={found['replay']}"]
    then = found["seen_then"]
    lines = [
        " ".join(first),
        f"  {found['size']}",
        f"  then: {then['status']} at {then['first_stage']}: {one_line(then['note'])}",
        f"  now:  {one_line(found['note']) or found['verdict']}",
    ]
    for row in found["comparisons"]:
        worst = row["worst"]
        place = f", {worst['actual']} instead of {worst['expected']}" if worst else ""
        lines.append(
            f"  {row['stage']:<10} {row['status']:<10} max |Δ| {number(row['max_abs'])}{place}"
            f"  (reference: {row['reference']})"
        )
    for name, (before, now) in found["environment_differs"].items():
        lines.append(f"  {name} was {before}, is {now}")
    return "\n".join(lines)
