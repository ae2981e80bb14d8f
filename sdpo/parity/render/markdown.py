"""The report as Markdown: fits a comment on a pull request, quotes every text of the candidate."""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from jinja2 import Template

from sdpo.parity.render.plots import Plot
from sdpo.parity.render.sections import sections
from sdpo.parity.render.sentences import names
from sdpo.parity.render.templates import compiled
from sdpo.parity.render.text import case_counts
from sdpo.parity.report.judgement import QUOTED, number
from sdpo.parity.report.run_report import RunReport

_LONGEST = 600
"""Characters of one text in a comment."""


def markdown_report(run: RunReport, plots: Sequence[Plot] = ()) -> str:
    """Render a run as Markdown.

    Args:
        run: the report of one candidate.
        plots: pictures that lie next to the report.
    """
    return _template().render(vars(sections(run)), plots=plots, quoted=QUOTED)


def markdown_comment(run: RunReport) -> str:
    """Render the head of a report alone: verdict, diagnosis, stages by status, in few lines."""
    said = sections(run)
    lines = [f"### {run.verdict}: {code(run.candidate)}", "", f"{said.headline}."]
    if said.message:
        lines += ["", code(_shortened(said.message))]
    lines += [""] if said.diagnosis else []
    for label, sentence in said.diagnosis:
        words = _shortened(sentence)
        lines.append(f"- **{label}:** {code(words) if label in QUOTED else text(words)}")
    by_status: dict[str, list[str]] = {}
    for view in said.stages:
        by_status.setdefault(view.status, []).append(view.name)
    stages = "; ".join(f"{status}: {names(of)}" for status, of in by_status.items())
    return "\n".join([*lines, "", f"{stages or 'no stage compared'}. {case_counts(run)}."])


def _shortened(value: str) -> str:
    """Cut a text to a length that fits a comment."""
    words = " ".join(value.split())
    return words if len(words) <= _LONGEST else words[: _LONGEST - 1] + "…"


@cache
def _template() -> Template:
    """Compile the template with its filters, once."""
    filters = {"code": code, "cell": cell, "fence": fence, "text": text, "number": number}
    return compiled(Path(__file__).with_name("report.md.j2"), filters)


def code(value: object) -> str:
    """Quote a text as a code span, whatever characters it has; empty stays empty."""
    words = " ".join(str(value).split())
    if not words:
        return ""
    ticks = "`" * (_longest_run(words) + 1)
    space = " " if words[0] == "`" or words[-1] == "`" else ""
    return f"{ticks}{space}{words}{space}{ticks}"


def cell(value: object) -> str:
    """Quote a text as a code span inside a table, where a bar would end the cell."""
    return code(value).replace("|", "\\|")


def fence(value: object) -> str:
    """Quote a text as a code block."""
    content = str(value)
    ticks = "`" * max(3, _longest_run(content) + 1)
    return f"{ticks}text\n{content}\n{ticks}"


def text(value: object) -> str:
    """Escape a text so that nothing in it means anything to Markdown, on one line."""
    words = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", words.replace(">", "&gt;"))


def _longest_run(content: str) -> int:
    """Length of the longest run of backticks."""
    return max((len(ticks) for ticks in re.findall("`+", content)), default=0)
