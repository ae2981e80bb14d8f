"""One measurement: seconds, memory and what contenders must agree on."""

import sys

import pytest

from sdpo.benchmark.performance.contenders import LossShape
from sdpo.benchmark.performance.timed_process import measurements

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux
def test_each_round_of_each_shape_is_a_row():
    shapes = [LossShape(200, 8, 3, tokens, 1.0) for tokens in (8, 16)]
    rows = list(measurements("fused", shapes, repeats=2))
    assert [(row["tokens"], row["round"]) for row in rows] == [(8, 0), (8, 1), (16, 0), (16, 1)]
    assert all(float(row["wall_s"]) > 0 and float(row["grad_weight"]) > 0 for row in rows)
    assert rows[0]["loss"] == rows[1]["loss"]


@linux
def test_the_floor_has_no_results_to_compare():
    (row,) = measurements("projections", [LossShape(200, 8, 3, 8, 1.0)], repeats=1)
    assert "wall_s" in row
    assert not {"loss", "grad_student", "grad_weight"} & set(row)
