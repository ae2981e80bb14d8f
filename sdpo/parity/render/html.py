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
from sdpo.parity.report.judgement import QUOTED, number
from sdpo.parity.report.run_report import RunReport


def html_report(run: RunReport, plots: Sequence[Plot] = ()) -> str:
    """Render a run as one HTML file.

    Args:
        run: the report of one candidate.
        plots: pictures to embed.
    """
    return _template().render(vars(sections(run)), plots=plots, quoted=QUOTED)


@cache
def _template() -> Template:
    """Compile the template with its filters, once."""
    filters = {"marked": marked, "data_uri": data_uri, "breakable": _breakable, "number": number}
    return compiled(Path(__file__).with_name("report.html.j2"), filters)


def marked(sentence: str) -> Markup:
    """Escape a sentence of ours, then set `names` in it as code."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(sentence))))


def _breakable(name: str) -> Markup:
    """Escape a long name, then let it break after `_`, `/` and `:`."""
    return Markup(re.sub(r"([_/:])", r"\1<wbr>", str(escape(name))))


def data_uri(png: bytes) -> str:
    """Turn a picture into an address that needs no file."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
