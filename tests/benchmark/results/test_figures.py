"""Plots show the figures that the tables give."""

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.lines import Line2D

from sdpo.benchmark.results.figures import draw_pass, whole_decades
from sdpo.benchmark.results.load_runs import by_name, interval_at, read_runs
from tests.helpers.written_runs import PROBLEMS, write_run


def test_bars_are_intervals_of_the_lines_that_they_stand_behind(tmp_path):
    """Also of a seed that is ahead of another: lines end where every seed has been."""
    write_run(tmp_path, "one", 1, [10, 20, 50])
    write_run(tmp_path, "one", 2, [10, 40])
    groups = by_name(read_runs(tmp_path))
    axes = draw_pass(groups, "label").axes[0]
    line, (bar,) = axes.get_lines()[0], axes.containers
    assert isinstance(bar, ErrorbarContainer)
    marker, _, (stick,) = bar.lines
    assert isinstance(marker, Line2D)
    centre = float(np.asarray(marker.get_ydata())[0])
    assert centre == pytest.approx(float(np.asarray(line.get_ydata())[-1]))
    assert centre == pytest.approx(30 / PROBLEMS)
    low, high = np.asarray(stick.get_segments()[0])[:, 1]
    expected = interval_at(groups["one"], 1)
    assert (low, high) == pytest.approx((expected.low, expected.high))
    assert low < centre < high


def test_a_log_axis_within_one_decade_still_has_two_labels():
    assert whole_decades(2e-5, 7e-5) == pytest.approx((1e-5, 1e-4))
    assert whole_decades(3e-7, 2e-4) == pytest.approx((1e-7, 1e-3))
