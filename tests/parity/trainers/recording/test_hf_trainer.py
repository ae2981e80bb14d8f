"""What is checked around a run of a trainer derived from transformers' `Trainer`."""

from dataclasses import replace

import pytest

from sdpo.parity.cases.checked_call import CandidateError, NotCoveredError
from sdpo.parity.trainers.recording.hf_trainer import check_complete, check_schedule, rank_in
from sdpo.parity.trainers.scenarios.catalogue import BY_ID, PLAIN
from sdpo.parity.trainers.scenarios.training_record import (
    MicroBatch,
    OptimizerStep,
    TrainerRun,
    Update,
)


def run_of(*updates):
    """A run with so many micro-batches in each step of each update."""
    return TrainerRun(
        updates=[
            Update(steps=[OptimizerStep([MicroBatch([0])] * count) for count in steps])
            for steps in updates
        ]
    )


@pytest.mark.parametrize(
    ("scenario", "updates"),
    [("T01", [[1]]), ("T03", [[4]]), ("T05", [[2, 2]]), ("T06", [[1, 1]]), ("T07", [[1]] * 3)],
)
def test_micro_batches_steps_and_updates_are_those_of_the_scenario(scenario, updates):
    check_complete(run_of(*updates), BY_ID[scenario])
    with pytest.raises(CandidateError, match="micro-batches of each optimizer step"):
        check_complete(run_of(*updates, [1]), BY_ID[scenario])


def test_an_optimizer_step_over_two_generations_is_refused():
    """Three micro-batches a generation do not make steps of two."""
    odd = replace(BY_ID["T04"], micro_batch_size=2, steps_per_generation=4, accumulation=3)
    with pytest.raises(NotCoveredError, match=r"accumulation=3 does not divide .* = 4"):
        check_schedule(odd)
    check_schedule(BY_ID["T04"])


def test_the_rank_is_that_of_the_environment(monkeypatch):
    assert rank_in(PLAIN) == 0
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert rank_in(BY_ID["T31"]) == 1
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(NotCoveredError, match="no process of 2"):
        rank_in(BY_ID["T31"])
