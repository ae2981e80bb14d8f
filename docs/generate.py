"""Writes the generated parts of the README, `docs/peers.md` and the gallery, from audit reports.

Run `make docs`: it audits the transcription and our implementation first. The trainers are audited
here (minutes), unless `--reuse` takes their reports as they are.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import msgspec
import peer_tables as peers

from sdpo.parity.cases.stages import STAGES
from sdpo.parity.render.text import case_counts, comparison_counts
from sdpo.parity.report.judgement import number
from sdpo.parity.report.report_rows import StageRow
from sdpo.parity.report.run_report import RunReport, read_report

ROOT = Path(__file__).parents[1]
AUDITS = ROOT / "reports" / "audit"
GALLERY = ROOT / "reports" / "gallery"
PACKAGES = {"trl": "trl", "sdpo-rl": "sdpo_rl"}
TRAINERS = ("sdpo-trainer", *PACKAGES)


def require_peers() -> None:
    """Stop if a peer is not installed.

    Raises:
        SystemExit: naming what is missing and what installs it.
    """
    missing = [name for name, module in PACKAGES.items() if find_spec(module) is None]
    if missing:
        raise SystemExit(
            f"docs/generate.py: {', '.join(missing)} not installed; the table of trainers is made "
            "by running them: pip install -e '.[peers]'"
        )


def audit_trainers() -> None:
    """Audit the trainers, one after the other.

    Raises:
        SystemExit: one could not be audited, so that there is nothing to show.
    """
    for name in TRAINERS:
        command = [sys.executable, "-m", "sdpo", "audit", name, "--quiet"]
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        if code not in (0, 1):
            raise SystemExit(f"docs/generate.py: sdpo audit {name} ended with exit code {code}")


def load(candidate: str) -> RunReport:
    """The report of a candidate."""
    return read_report(AUDITS / candidate / "report.json").runs[0]


def table(reference: RunReport, own: RunReport) -> str:
    """Verdict table of both candidates, one row for each stage."""
    lines = [
        "| # | stage | what is compared | transcription: bit-equal | ours: status | bit-equal "
        "| largest error ÷ budget |",
        "|--:|---|---|--:|---|--:|--:|",
    ]
    for theirs, row in zip(reference.stages, own.stages, strict=True):
        stage = STAGES[row.name]
        lines.append(
            f"| {stage.number} | `{stage.name}` | {stage.compares} | {share(theirs)} "
            f"| {row.status} | {share(row)} | {used(stage.kind, row)} |"
        )
    return "\n".join(lines)


def share(row: StageRow) -> str:
    """How many of the comparisons that had an element were bit-equal."""
    return f"{row.bit_equal} of {row.compared}" if row.compared else "-"


def used(kind: str, row: StageRow) -> str:
    """The largest share of a budget that was used."""
    return "exact" if kind == "exact" else number(row.budget_used)


def summary(run: RunReport) -> str:
    """Verdict and totals of a run in one line."""
    what = f"{case_counts(run)}; {comparison_counts(run)}"
    return f"`sdpo audit {run.candidate}`: **{run.verdict}**, {what}."


def replaced(text: str, name: str, block: str) -> str:
    """The text with the part between the markers of `name` replaced."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{block}\n{end}{after}"


def example(text: str) -> str:
    """The audit's first line for the loss in the README."""
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code is not None
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "my_loss.py").write_text(code[1], encoding="utf-8")
        command = [sys.executable, "-m", "sdpo", "audit", "my_loss.py:sdpo_loss", "--quiet"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return f"```\n{done.stdout.strip()}\n```"


def trainers(runs: list[dict]) -> str:
    """The part of the README about trainers."""
    summaries = "\n".join(f"- {peers.summary(run)}" for run in runs)
    return "\n\n".join([summaries, peers.stage_table(runs), MAIN, peers.main_table(runs)])


MAIN = """Each deviation where it shows first, with the known fault that reproduces it. The figures
are of the whole scenario beside the reference's own update from the same rollouts: the first
gradient (ratio of norms, cosine, distance ÷ norm) and the weights at the end (÷ the way gone)."""


def main() -> None:
    """Replace the generated parts of the README, write the peers' page and copy the plots."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reuse", action="store_true", help="do not audit the trainers again")
    require_peers()
    if not parser.parse_args().reuse:
        audit_trainers()
    reference, own = load("reference"), load("sdpo")
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    environment = own.environment
    stack = (
        f"torch {environment.torch}, {environment.cpu_capability}, "
        f"{environment.determinism['torch_num_threads']} thread"
    )
    parts = [summary(reference), summary(own), f"Measured with {stack}.", table(reference, own)]
    text = replaced(text, "verdicts", "\n\n".join(parts))
    runs = [msgspec.to_builtins(load(name)) for name in TRAINERS]
    text = replaced(text, "trainers", trainers(runs))
    (ROOT / "docs" / "peers.md").write_text(peers.page(runs), encoding="utf-8")
    readme.write_text(replaced(text, "example", example(text)), encoding="utf-8")
    GALLERY.mkdir(parents=True, exist_ok=True)
    for name in ("overview.png", "budget.png"):
        shutil.copy(AUDITS / "sdpo" / name, GALLERY / name)


if __name__ == "__main__":
    main()
