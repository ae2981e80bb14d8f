"""A recorded training as a trace."""

import torch

from sdpo.parity.cases.stage_trace import Place
from sdpo.parity.trainers.judge.trainer_trace import trace_of
from sdpo.parity.trainers.scenarios.training_record import (
    MicroBatch,
    OptimizerStep,
    TrainerRun,
    Update,
)


def test_each_value_has_its_place():
    micro_batches = [MicroBatch([n], values={"aggregate": torch.tensor(n)}) for n in range(2)]
    step = OptimizerStep(micro_batches, {"w": torch.tensor(5)}, 1.0, {"w": torch.tensor(6)})
    update = Update({"feedback": ["text"]}, [step], {"w": torch.tensor(7)})
    trace = trace_of(TrainerRun(updates=[Update(), update]))
    assert trace == {
        Place(1, 0, 0, "feedback", "feedback"): ["text"],
        Place(1, 0, 0, "aggregate", "aggregate"): 0,
        Place(1, 0, 1, "aggregate", "aggregate"): 1,
        Place(1, 0, 1, "accumulate", "w"): 5,
        Place(1, 0, 1, "optimizer", "w"): 6,
        Place(1, 0, 1, "teacher_update", "w"): 7,
    }
