"""Logged numbers beside what was optimised."""

import math

import pytest
import torch

from sdpo.parity.compare.statuses import Status
from sdpo.parity.trainers.judge.logged_metrics import LOSS, METRIC, NORM, compare_logged
from sdpo.parity.trainers.scenarios.training_record import (
    MicroBatch,
    OptimizerStep,
    TrainerRun,
    Update,
)


def statuses(logged, optimised: float | None = 2.0):
    """Two micro-batches with losses 1 and 3, and a gradient of norm 5."""
    losses = [MicroBatch([0], values={"aggregate": torch.tensor(v)}) for v in (1.0, 3.0)]
    step = OptimizerStep(losses, {"w": torch.tensor([3.0, 4.0])}, logged=logged)
    run = TrainerRun(updates=[Update(steps=[step])])
    results = compare_logged({"T01": run}, {"T01": [optimised]}, ["mine"])
    return {result.id: result.status for result in results}


def test_a_right_log_matches():
    found = statuses({"loss": 2.0, "mine": 2.0, "grad_norm": 5.0})
    assert found == {LOSS: Status.MATCH, METRIC: Status.MATCH, NORM: Status.MATCH}


@pytest.mark.parametrize(
    ("check", "logged"),
    [(LOSS, {"loss": 4.0}), (METRIC, {"mine": 4.0}), (NORM, {"grad_norm": 1.0})],
)
def test_a_wrong_number_is_charged_to_its_own_check(check, logged):
    right = {"loss": 2.0, "mine": 2.0, "grad_norm": 5.0}
    found = statuses(right | logged)
    assert [name for name, status in found.items() if status == Status.DIVERGENT] == [check]


def test_the_loss_is_what_was_optimised_and_not_the_mean():
    assert statuses({"loss": 2.0}, optimised=4.0)[LOSS] == Status.DIVERGENT


def test_what_is_not_logged_or_not_known_is_not_covered():
    assert set(statuses({}).values()) == {Status.NOT_COVERED}
    assert statuses({"loss": 2.0}, optimised=None)[LOSS] == Status.NOT_COVERED


def test_a_number_that_is_not_finite_on_one_side_only_is_wrong():
    assert statuses({"loss": math.nan})[LOSS] == Status.DIVERGENT
    assert statuses({"loss": math.nan}, optimised=math.nan)[LOSS] == Status.MATCH
