"""The report as Markdown: fits a comment on a pull request, quotes every text of the candidate."""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Template

from sdpo.parity.render.sections import sections
from sdpo.parity.render.templates import compiled
from sdpo.parity.report.run_report import RunReport


def markdown_report(run: RunReport, plots: Sequence[Any] = ()) -> str:
    """Render a run.

    Args:
        run: the report of one candidate.
        plots: pictures that lie next to the report, each with `file`, `title` and `caption`.
    """
    return template().render(sections(run), plots=plots)


@cache
def template() -> Template:
    """The template with its filters."""
    filters = {"code": code, "cell": cell, "fence": fence, "text": text}
    return compiled(Path(__file__).with_name("report.md.j2"), filters)


def code(value: Any) -> str:
    """A text as a code span, whatever characters it has; empty stays empty."""
    words = " ".join(str(value).split())
    if not words:
        return ""
    ticks = "`" * (longest_run(words) + 1)
    space = " " if words[0] == "`" or words[-1] == "`" else ""
    return f"{ticks}{space}{words}{space}{ticks}"


def cell(value: Any) -> str:
    """A code span inside a table, where a bar would end the cell."""
    return code(value).replace("|", "\\|")


def fence(value: Any) -> str:
    """A text as a code block."""
    content = str(value)
    ticks = "`" * max(3, longest_run(content) + 1)
    return f"{ticks}text\n{content}\n{ticks}"


def text(value: Any) -> str:
    """A plain text without meaning to Markdown; line breaks become spaces."""
    words = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", words.replace(">", "&gt;"))


def longest_run(content: str) -> int:
    """Length of the longest run of backticks."""
    return max((len(ticks) for ticks in re.findall("`+", content)), default=0)
