"""The learning rate and the lessons of a step follow from the recipe."""

from dataclasses import replace

import pytest

from sdpo.benchmark.embedded.recipe import PACKAGED

RECIPE = replace(PACKAGED, steps=100, warm_up=10, fall=20, learning_rate=2.0)


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 0.2),  # 2 · 1/10
        (4, 1.0),  # 2 · 5/10
        (9, 2.0),
        (80, 2.0),  # 20 of the last 20 steps are left
        (90, 1.0),  # 2 · 10/20
        (99, 0.1),  # 2 · 1/20
        (100, 0.04),  # 2 · 0.02, the least
    ],
)
def test_the_rate_rises_stays_and_falls(step, rate):
    assert RECIPE.rate_at(step) == pytest.approx(rate)


def test_a_stage_ends_before_its_step_and_the_last_one_stays():
    recipe = replace(PACKAGED, stages=((2, {"echo": 5}), (4, {"plain": 7})))
    assert [recipe.counts_at(step) for step in (1, 2, 9)] == [
        {"echo": 5},
        {"plain": 7},
        {"plain": 7},
    ]
