"""The report as Markdown: fits a comment on a pull request, quotes every text of the candidate."""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from jinja2 import Template

from sdpo.parity.render.plots import Plot
from sdpo.parity.render.sections import sections
from sdpo.parity.render.templates import compiled
from sdpo.parity.report.judgement import number
from sdpo.parity.report.run_report import RunReport


def markdown_report(run: RunReport, plots: Sequence[Plot] = ()) -> str:
    """Render a run as Markdown.

    Args:
        run: the report of one candidate.
        plots: pictures that lie next to the report.
    """
    return _template().render(vars(sections(run)), plots=plots)


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
