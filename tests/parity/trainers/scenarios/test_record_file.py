"""Runs pass through a file as they were, and nothing else passes."""

import pytest
import torch

from sdpo.parity.trainers.scenarios.record_file import read, write
from sdpo.parity.trainers.scenarios.training_record import (
    MicroBatch,
    OptimizerStep,
    TrainerRun,
    Update,
)


def test_a_run_is_read_as_it_was_written_to_the_bit(tmp_path):
    micro = MicroBatch([1, 0], {"ids": torch.tensor([[3, 4]])}, {}, {"loss": torch.tensor(0.1)})
    step = OptimizerStep([micro], {"w": torch.tensor([-0.0, torch.nan])}, 0.5)
    write(tmp_path / "run", TrainerRun(updates=[Update({"feedback": [None, "x"]}, [step])]))
    run = read(tmp_path / "run")
    found = run.updates[0].steps[0]
    assert run.updates[0].prompt == {"feedback": [None, "x"]}
    assert found.micro_batches[0].rows == [1, 0]
    assert found.micro_batches[0].inputs["ids"].tolist() == [[3, 4]]
    assert torch.equal(found.micro_batches[0].values["loss"], torch.tensor(0.1))
    assert torch.equal(found.gradient["w"].view(torch.int32), step.gradient["w"].view(torch.int32))


def test_tuples_become_lists_and_views_their_own_tensors(tmp_path):
    whole = torch.arange(6.0).reshape(2, 3)
    write(tmp_path / "value", {"pair": (1, "a"), "column": whole[:, 1]})
    found = read(tmp_path / "value")
    assert found["pair"] == [1, "a"]
    assert found["column"].tolist() == [1, 4]


@pytest.mark.parametrize(
    ("value", "message"), [({1: 2}, "key 1 of a recorded mapping"), ({"a": {3}}, "type set")]
)
def test_anything_else_is_refused(value, message, tmp_path):
    with pytest.raises(TypeError, match=message):
        write(tmp_path / "value", value)
