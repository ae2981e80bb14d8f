"""Writes the files of a report (JSON, Markdown, HTML, JUnit, SARIF, plots), and takes them away."""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from msgspec import structs

from sdpo.parity.render.html import html_report
from sdpo.parity.render.junit import junit_report
from sdpo.parity.render.markdown import markdown_report
from sdpo.parity.render.plots import FILES, draw_plots
from sdpo.parity.render.sarif import sarif_report
from sdpo.parity.report.run_report import SCHEMA_VERSION, Report, RunReport

RENDERED = ("report.json", "report.md", "report.html", "report.junit.xml", "report.sarif")


def document(runs: Sequence[RunReport], *, error: str = "") -> str:
    """Make the one JSON document of some runs, in ASCII; `error` is what could not be written."""
    report = Report(schema_version=SCHEMA_VERSION, runs=list(runs), error=error)
    return report.text(ascii_only=True)


def write_reports(run: RunReport, folder: Path) -> None:
    """Write `report.json` and its renderings; plots of an earlier run do not stay.

    Raises:
        InconsistentReportError: the report contradicts itself; nothing is written.
    """
    text = Report(schema_version=SCHEMA_VERSION, runs=[run]).text() + "\n"
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
