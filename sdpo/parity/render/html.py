"""The report as one HTML file: plots embedded, nothing loaded from elsewhere, all text escaped."""

import base64
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from jinja2 import Template
from markupsafe import Markup, escape

from sdpo.parity.render.plots import Plot
from sdpo.parity.render.sections import sections
from sdpo.parity.render.templates import compiled
from sdpo.parity.report.run_report import RunReport


def html_report(run: RunReport, plots: Sequence[Plot] = ()) -> str:
    """Render a run.

    Args:
        run: the report of one candidate.
        plots: pictures to embed.
    """
    return template().render(sections(run), plots=plots)


@cache
def template() -> Template:
    """The template with its filters."""
    filters = {"marked": marked, "data_uri": data_uri, "breakable": breakable}
    return compiled(Path(__file__).with_name("report.html.j2"), filters)


def marked(sentence: str) -> Markup:
    """A sentence of ours, `names` in it set as code; escaped before."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(sentence))))


def breakable(name: str) -> Markup:
    """A long name that may break after `_`, `/` and `:`; escaped before."""
    return Markup(re.sub(r"([_/:])", r"\1<wbr>", str(escape(name))))


def data_uri(png: bytes) -> str:
    """A picture as an address that needs no file."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
