"""Bounds on cases that are small enough for a pencil."""

import numpy as np
import pytest

from sdpo.parity.truth.error_bounds import sum_of_independent


def test_independent_errors_add_up_in_quadrature():
    # three deviations of √(3² + 4²) = 5 are 15, more than the sum of 7; of twenty ones, 3 · √20
    assert sum_of_independent(np.array([3.0, -4.0])) == 7
    assert sum_of_independent(np.ones(20)) == pytest.approx(3 * 20**0.5)
