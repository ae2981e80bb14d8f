"""What is compared before the first update: settings, and where the teacher starts."""

import pytest

from sdpo.lockstep.replica import weights_of
from sdpo.parity.compare.first_in_time import BEFORE
from sdpo.parity.compare.statuses import Status
from sdpo.parity.trainers.judge.follow_training import FollowedTraining
from sdpo.parity.trainers.scenarios.catalogue import BY_ID, PLAIN
from sdpo.parity.trainers.scenarios.tiny_model import tiny_model
from sdpo.parity.trainers.scenarios.training_record import TrainerRun


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return weights_of(tiny_model(PLAIN, tmp_path_factory.mktemp("model")))


def comparisons(run, folder, scenario=PLAIN):
    return list(FollowedTraining(scenario, run, folder).comparisons())


def test_settings_are_compared_by_name_and_those_unknown_to_the_scenario_are_left_out(
    weights, tmp_path
):
    run = TrainerRun({"alpha": 0.5, "temperature": 0.7, "of_its_own": 1}, weights, weights)
    found = comparisons(run, tmp_path)
    assert [comparison.status for comparison in found] == [Status.MATCH, Status.DIVERGENT]
    assert {comparison.stage for comparison in found} == {"config"}
    (same,) = comparisons(
        TrainerRun({"temperature": 0.7}, weights, weights), tmp_path, BY_ID["T02"]
    )
    assert same.status == Status.MATCH


def test_a_teacher_that_starts_elsewhere_diverges_before_the_first_update(weights, tmp_path):
    moved = {name: value + 1 for name, value in weights.items()}
    (comparison,) = comparisons(TrainerRun({}, weights, moved), tmp_path)
    assert (comparison.stage, comparison.status) == ("teacher_update", Status.DIVERGENT)
    assert comparison.place == BEFORE
    assert comparison.max_abs == pytest.approx(1.0)
