"""What a failed training says of a trainer, by where and when it fails."""

from dataclasses import replace
from pathlib import Path

import pytest

from sdpo.parity.cases.checked_call import CandidateError, NotCoveredError
from sdpo.parity.compare.statuses import Status
from sdpo.parity.trainers.judge.run_scenarios import follow, run_trainer_family
from sdpo.parity.trainers.recording.hf_trainer import TrainingFailedError
from sdpo.parity.trainers.scenarios.catalogue import BY_ID, PLAIN
from sdpo.parity.trainers.scenarios.training_record import TrainerRun

TWO_PROCESSES = replace(PLAIN, micro_batch_size=2, processes=2)


class Fails:
    """Raises in every scenario."""

    name = "fails"

    def __init__(self, error: Exception) -> None:
        self.error = error

    def run(self, scenario, folder) -> TrainerRun:
        raise self.error


@pytest.mark.parametrize(
    ("scenario", "trains", "status"),
    [
        (PLAIN, True, Status.ERROR),
        (TWO_PROCESSES, False, Status.ERROR),
        (TWO_PROCESSES, True, Status.DIVERGENT),
    ],
)
def test_a_failure_diverges_only_of_several_processes_and_a_trainer_that_trains(
    scenario, trains, status
):
    candidate = Fails(TrainingFailedError("accumulate", "hangs"))
    result, training = follow(candidate, scenario, Path(), trains=trains)
    assert training is None
    assert [comparison.status for comparison in result.comparisons] == [status]


def test_an_error_of_the_adapter_is_one_at_its_stage():
    result, _ = follow(Fails(CandidateError("config", "boom")), TWO_PROCESSES, Path(), trains=True)
    assert (result.first_stage, result.status) == ("config", Status.ERROR)


def test_what_a_trainer_cannot_express_is_not_covered():
    findings = run_trainer_family(
        Fails(NotCoveredError("no LoRA")), lambda *_: None, [PLAIN, BY_ID["T02"]]
    )
    assert [result.note for result in findings.results] == ["not covered: no LoRA"] * 2
    assert findings.runs == {}
    assert not findings.trains
