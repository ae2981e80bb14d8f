"""The audit as a step of a workflow: `python -m sdpo.parity.audit.github_action`.

Environment variables tell it what to do.

Beside the reports it writes `comment.md`, the step's outputs and summary, and prints annotations.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from sdpo.parity.audit.launch import Outputs, audit_all
from sdpo.parity.audit.request import Request
from sdpo.parity.cases.failure import ended
from sdpo.parity.compare.statuses import EXIT_ORDER, FAILING, Verdict
from sdpo.parity.render.markdown import markdown_comment, markdown_report
from sdpo.parity.render.sarif import address, message, repository_root
from sdpo.parity.render.text import first_line
from sdpo.parity.report.run_report import RunReport

_MOST = 65_000
_COMMANDS = {
    Verdict.DIVERGENT: "error",
    Verdict.ERROR: "error",
    Verdict.INCONCLUSIVE: "warning",
    Verdict.DECLARED: "notice",
}
_BUNDLES = 3


def main(environ: Mapping[str, str] = os.environ) -> int:
    """Audit what the variables say, tell the workflow, and return the exit code."""
    candidates = lines(environ.get("SDPO_CANDIDATE", ""))
    coverage = environ.get("SDPO_COVERAGE", "") or "0"
    if not candidates or not coverage.isdecimal():
        wrong = f"coverage must be a number, not {coverage!r}" if candidates else "no candidate"
        print(f"ERROR {wrong}")
        print(f"::error title=SDPO parity::{escaped(wrong)}")
        return 2
    out = Path(environ.get("SDPO_OUT") or "sdpo-parity")
    history = environ.get("SDPO_HISTORY", "")
    requests = [
        Request(
            candidate,
            goldens=tuple(lines(environ.get("SDPO_GOLDENS", ""))),
            declared=tuple(lines(environ.get("SDPO_DECLARED", ""))),
            stages=tuple(names(environ.get("SDPO_STAGES", ""))),
            require=tuple(names(environ.get("SDPO_REQUIRE", ""))),
            coverage=int(coverage),
        )
        for candidate in candidates
    ]
    outputs = Outputs(out, history=Path(history) if history else None, bundles=_BUNDLES)
    runs: list[RunReport] = []
    code = audit_all(requests, outputs, runs.append)
    for run in runs:
        for annotation in annotations(run):
            print(annotation)
    tell(runs, code, out, environ)
    return code


def lines(text: str) -> list[str]:
    """List the lines of a text that are not blank."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def names(text: str) -> list[str]:
    """Split a list of names at its commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def annotations(run: RunReport) -> list[str]:
    """Make the workflow commands that mark the candidate's line, for verdict and failing stages."""
    commands = []
    if run.verdict in _COMMANDS:
        texts = "; ".join([first_line(run), *run.reasons[:3]])
        commands.append(annotation(_COMMANDS[run.verdict], run, None, texts))
    for row in run.stages:
        if row.status in FAILING:
            text = message(run, row)
            commands.append(annotation("error", run, row.name, text))
    return commands


def annotation(command: str, run: RunReport, stage: str | None, text: str) -> str:
    """Make one workflow command."""
    place = run.location_of(stage)
    fields = {"title": f"SDPO parity: {stage or run.verdict}"}
    if place is not None:
        file = address(Path(place.file), repository_root(Path.cwd()))["uri"]
        fields = {"file": file, "line": str(place.line)} | fields
    joined = ",".join(f"{name}={escaped(value, ':,')}" for name, value in fields.items())
    return f"::{command} {joined}::{escaped(text)}"


def escaped(text: str, also: str = "") -> str:
    """Escape a text, so that it cannot end a workflow command or start another one."""
    for sign in "%\r\n" + also:
        text = text.replace(sign, f"%{ord(sign):02X}")
    return text


def comment(runs: Sequence[RunReport]) -> str:
    """Join the heads of all reports to one Markdown text that fits a comment."""
    return _fitting(runs, [markdown_comment(run) for run in runs])


def _fitting(runs: Sequence[RunReport], parts: Sequence[str]) -> str:
    """Join a text for each run; where that is too long, the first lines alone."""
    text = "\n\n".join(parts)
    if len(text) <= _MOST:
        return text
    heads = [f"- `{first_line(run).replace('`', chr(39))[:500]}`" for run in runs]
    note = "The reports are too long for a comment; they are among the files of this run."
    return "\n".join([*heads, "", note])[:_MOST]


def tell(runs: Sequence[RunReport], code: int, out: Path, environ: Mapping[str, str]) -> None:
    """Write the comment, the step's outputs and its summary."""
    worst = min(runs, key=lambda run: EXIT_ORDER.index(run.exit_code), default=None)
    nothing = "The audit could not be started; the log says why."
    text = comment(runs) if runs else nothing
    whole = _fitting(runs, [markdown_report(run) for run in runs]) if runs else nothing
    path = out / "comment.md"
    if out.is_dir():
        path.write_text(text, encoding="utf-8")
    outputs = {
        "verdict": worst.verdict if worst else Verdict.ERROR,
        "first-stage": (worst.first_stage or "") if worst else "",
        "exit-code": str(code),
        "comment": str(path),
    }
    for variable, content in (
        ("GITHUB_OUTPUT", "".join(f"{name}={value}\n" for name, value in outputs.items())),
        ("GITHUB_STEP_SUMMARY", whole + "\n"),
    ):
        if environ.get(variable):
            with Path(environ[variable]).open("a", encoding="utf-8") as file:
                file.write(content)


if __name__ == "__main__":
    sys.exit(ended(main))
