"""Plots of a report as PNG: overview of the stages, use of the budget, size of the errors.

Matplotlib is imported when something is drawn; only its object interface is used.
"""

import importlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, cast

from sdpo.parity.render.figures import DPI, STYLE, draw_budget, draw_errors, draw_overview
from sdpo.parity.render.plot_data import overview, stage_errors
from sdpo.parity.report.run_report import RunReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILES = ("overview.png", "budget.png", "errors.png")


@dataclass(frozen=True)
class Plot:
    """A finished picture."""

    file: str
    title: str
    caption: str
    png: bytes


def load_ahead() -> None:
    """Import what draws, beside other work: a second, in which the caller waits for a process."""
    backend = ("matplotlib.backends.backend_agg",)
    threading.Thread(target=importlib.import_module, args=backend, daemon=True).start()


def draw_plots(run: RunReport) -> list[Plot]:
    """All plots for which the run has data; the overview always."""
    label = f"{printable(run.candidate)} – {run.verdict}"
    cells, errors = overview(run), stage_errors(run)
    made = [
        Plot(
            FILES[0],
            f"Status of the {len(cells)} stages",
            "Status of each stage in causal order, with the number of cases compared.",
            png(lambda: draw_overview(cells, label)),
        )
    ]
    if not errors:
        return made
    budget = Plot(
        FILES[1],
        "Error of each case in units of its budget",
        "Left: cases that are bit-equal. Right: for each other case the element that uses most of "
        "its rounding budget; beyond 1 the difference is more than rounding. Bars: medians.",
        png(lambda: draw_budget(errors, label)),
    )
    size = Plot(
        FILES[2],
        "Size of the errors of each case",
        "Cases that are not bit-equal. Left: largest absolute error. Right: largest error in units "
        "in the last place, of elements larger than their budget. Large figures under a PASS come "
        "from ill-conditioned elements or low precision, which the budget accounts for. Dashed: "
        "one rounding of a value of size 1 in each precision.",
        png(lambda: draw_errors(errors, label)),
    )
    return [*made, budget, size]


def printable(text: str, limit: int = 40) -> str:
    """A text with the characters that every font has, cut at its start."""
    plain = "".join(c if c.isprintable() and ord(c) < 256 else "?" for c in text)
    return plain if len(plain) <= limit else "..." + plain[3 - limit :]


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib's defaults with our style, whatever the user configured."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(cast("Any", STYLE))
        yield


def png(draw: Callable[[], "Figure"]) -> bytes:
    """Draw a figure and encode it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with style():
        figure = draw()
        FigureCanvasAgg(figure)
        buffer = BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()
