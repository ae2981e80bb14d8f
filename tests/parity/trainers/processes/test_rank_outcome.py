"""What passes from a process that trained to the one that judges."""

import pytest
import torch

from sdpo.parity.cases.checked_call import CandidateError, Location, NotCoveredError
from sdpo.parity.trainers.processes.rank_outcome import RankOutcome, places_of, rank_files
from sdpo.parity.trainers.recording.hf_trainer import TrainingFailedError
from sdpo.parity.trainers.scenarios.catalogue import BY_ID
from sdpo.parity.trainers.scenarios.training_record import TrainerRun


def through_a_file(outcome, folder):
    outcome.write(folder / "0.0")
    assert [path.name for path in folder.iterdir()] == ["0.0"]
    return RankOutcome.read(folder / "0.0")


def test_runs_and_places_are_read_as_they_were_written(tmp_path):
    run = TrainerRun({"alpha": 0.5}, {"w": torch.ones(2)})
    places = places_of(Location("a.py", 3), {"tail": Location("b.py", 4)})
    found = through_a_file(RankOutcome([run], places, "stood still"), tmp_path)
    assert found.runs[0].settings == {"alpha": 0.5}
    assert torch.equal(found.runs[0].initial["w"], torch.ones(2))
    assert found.places == {"": vars(Location("a.py", 3)), "tail": vars(Location("b.py", 4))}
    assert (found.second_attempt, found.error) == ("stood still", "")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (NotCoveredError("none"), {"not_covered": "none"}),
        (CandidateError("tail", "bad"), {"stage": "tail", "error": "bad"}),
        (
            TrainingFailedError("accumulate", "bad"),
            {"stage": "config", "error": "bad", "failed_in": "accumulate"},
        ),
    ],
)
def test_an_error_keeps_its_stage_and_reason(error, expected, tmp_path):
    found = through_a_file(RankOutcome.of_error(error), tmp_path)
    assert found == RankOutcome(**expected)


def test_what_was_recorded_before_a_failure_goes_along(tmp_path):
    error = TrainingFailedError("accumulate", "bad", TrainerRun({"alpha": 1.0}))
    found = through_a_file(RankOutcome.of_error(error), tmp_path)
    assert found.so_far == TrainerRun({"alpha": 1.0})


def test_each_rank_has_a_file_of_its_own(tmp_path):
    assert [path.name for path in rank_files(tmp_path, 7, BY_ID["T31"])] == ["7.0", "7.1"]
