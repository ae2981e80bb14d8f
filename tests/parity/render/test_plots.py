"""Plots of a report: the numbers behind them, and the pictures."""

import struct
import subprocess
import sys
from math import inf

import matplotlib
import pytest
from msgspec import structs

from sdpo.parity.render.figures import draw_budget, draw_errors, draw_overview
from sdpo.parity.render.plot_data import (
    clipped,
    log_range,
    overview,
    power_of_ten,
    stage_errors,
    swarm,
)
from sdpo.parity.render.plots import FILES, draw_plots, printable, style
from tests.helpers import run_documents
from tests.helpers.spread import slow_are


def size(png: bytes) -> tuple[int, int]:
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", png[16:24])


def test_every_case_is_counted_once():
    cases = [
        ["P-1", "MATCH", 0.0, 0.0, 0.0],
        ["P-2", "PASS", 0.5, 1e-8, 1.0],
        ["P-3", "DECLARED", 0.0, 0.0, 0.0],
        ["P-4", "DIVERGENT", "inf", "nan", 0.0],
        ["P-5", "DIVERGENT", 7.0, 1.0, 1e6],
        ["P-6", "ERROR", 0.0, 0.0, 0.0],
    ]
    (found,) = stage_errors(
        run_documents.run("ERROR", [run_documents.stage("gradient", "ERROR", cases)])
    )
    assert (found.bit_equal, found.odd, found.failed, found.cases) == (1, 2, 1, 6)
    assert [(error.case, error.used) for error in found.errors] == [("P-2", 0.5), ("P-5", 7.0)]


def test_only_numeric_stages_have_errors():
    names = [stage.name for stage in stage_errors(run_documents.passing())]
    assert names[0] == "log_probs"
    assert len(names) == 10
    assert stage_errors(run_documents.failed()) == []


def test_overview_has_all_stages_in_order():
    cells = overview(run_documents.divergent())
    assert [cell.number for cell in cells] == list(range(1, 17))
    assert {(cell.status, cell.compared) for cell in cells} == {
        ("NOT_COVERED", 0),
        ("DIVERGENT", 25),
    }
    assert [cell.family for cell in cells].count("loss") == 7


def test_documents_without_cases_of_a_stage_still_have_an_overview():
    run = run_documents.passing()
    run = structs.replace(run, stages=[structs.replace(row, by_case=[]) for row in run.stages])
    assert [plot.file for plot in draw_plots(run)] == ["overview.png"]


def test_log_range_contains_the_values_and_its_least_extent():
    low, high = log_range([1e-3, 0.2], (1e-6, 1e6), (1e-2, 2.0))
    assert low < 1e-3
    assert high > 2.0
    low, high = log_range([1e-30, 1e30], (1e-6, 1e6), (1e-2, 2.0))
    assert 1e-8 < low < 1e-6
    assert 1e6 < high < 1e8
    assert log_range([], (1e-6, 1e6), (1e-2, 2.0))[0] < 1e-2
    assert [clipped(value, (1.0, 2.0)) for value in (0.5, 1.5, inf)] == [1.0, 1.5, 2.0]


def test_swarm_keeps_equal_values_apart_and_lone_ones_in_the_middle():
    offsets = swarm([1.0] * 5 + [1e3], (0.1, 1e4))
    assert offsets[5] == 0.0
    assert len(set(offsets[:5])) == 5
    assert sum(offsets) == pytest.approx(0.0)
    assert max(swarm([1.0] * 500, (0.1, 10.0))) <= 0.4


def test_powers_of_ten_are_plain_text():
    assert [power_of_ten(x) for x in (1e-12, 0.1, 1.0, 10.0, 1e6)] == [
        "10⁻¹²",
        "10⁻¹",
        "1",
        "10",
        "10⁶",
    ]


@pytest.mark.parametrize("name", slow_are(("raising",), ("pass", "raising", "error")))
def test_pictures_are_drawn_and_have_their_size(name):
    plots = draw_plots(run_documents.ALL[name]())
    assert [plot.file for plot in plots] == list(FILES[: 1 if name == "error" else 3])
    for plot in plots:
        width, height = size(plot.png)
        assert width == 1600
        assert 390 <= height <= 1300
        assert 20_000 < len(plot.png) < 300_000
        assert plot.title
        assert plot.caption


def test_pictures_are_the_same_each_time_and_ignore_the_users_settings():
    run = run_documents.declared()
    first = [plot.png for plot in draw_plots(run)]
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black"}):
        assert [plot.png for plot in draw_plots(run)] == first
        assert matplotlib.rcParams["font.size"] == 30


@pytest.mark.parametrize("candidate", [r"$x_{$ \frac{", "损失.py:f\nb\tc", "x" * 300])
def test_any_candidate_name_can_be_drawn(candidate):
    assert draw_plots(structs.replace(run_documents.failed(), candidate=candidate))


def test_a_long_name_does_not_run_into_the_title():
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    label = f"{printable('W' * 10 + '/a_long_path' * 9 + '.py:sdpo_loss')} – INCONCLUSIVE"
    run = run_documents.divergent()
    cells, errors = overview(run), stage_errors(run)
    with style():
        for figure in (
            draw_overview(cells, label),
            draw_budget(errors, label),
            draw_errors(errors, label),
        ):
            FigureCanvasAgg(figure).draw()
            left, right = (text.get_window_extent() for text in figure.texts[:2])
            assert left.x1 < right.x0, figure.texts[0].get_text()


def test_names_in_pictures_are_short_and_printable():
    assert printable("损a\n") == "?a?"
    assert printable("y" + "x" * 80 + ".py:f", 20) == "..." + "x" * 12 + ".py:f"


def test_rendering_is_imported_without_matplotlib_and_torch():
    program = (
        "import sys, sdpo.parity.audit.launch; "
        "print([m for m in ('matplotlib', 'torch', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
