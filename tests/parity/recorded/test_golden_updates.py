"""A recording as a trace: names of the file go to places and back."""

from types import SimpleNamespace
from typing import Any

import torch

from sdpo.parity.cases.stage_trace import GRAD_NORM, NO_STAGE, Moment, Place
from sdpo.parity.recorded.golden_updates import (
    batches,
    golden_tensors,
    numbers,
    recorded_trace,
)

OUTCOME = {
    "micro_batches_per_optimizer_step": [2, 1],
    "micro_batch_row_indices": [[0], [1], [2, 3]],
    "metrics": {"actor/grad_norm": [3.0, "nan"]},
}
GOLDEN: Any = SimpleNamespace(
    entry={"results": [OUTCOME]}, config={"actor": {"use_dynamic_bsz": True}}
)
TENSORS = {
    name: torch.tensor(float(value))
    for value, name in enumerate(
        (
            "u0.in.responses",
            "u0.mb1.loss",
            "u0.mb2.student_log_probs",
            "u0.mini0.grad.w",
            "u0.actor.w",
            "u0.teacher.w",
        )
    )
}


def test_micro_batches_are_counted_through_the_update_and_placed_in_their_step():
    trace = recorded_trace(GOLDEN, TENSORS)
    assert trace[Place(0, 0, 1, "aggregate", "aggregate")] == 1
    assert trace[Place(0, 1, 0, "log_probs", "log_probs.student")] == 2


def test_gradients_and_weights_lie_at_the_last_micro_batch():
    trace = recorded_trace(GOLDEN, TENSORS)
    assert trace[Place(0, 0, 1, "accumulate", "w")] == 3
    assert trace[Place(0, 1, 0, "optimizer", "w")] == 4
    assert trace[Place(0, 1, 0, "teacher_update", "w")] == 5


def test_norms_come_from_the_manifest_and_inputs_are_no_values():
    trace = recorded_trace(GOLDEN, TENSORS)
    assert trace[Place(0, 0, 1, NO_STAGE, GRAD_NORM)] == 3.0
    assert trace[Place(0, 1, 0, NO_STAGE, GRAD_NORM)] != trace[Place(0, 1, 0, NO_STAGE, GRAD_NORM)]
    assert len(trace) == len(TENSORS) - 1 + 2


def test_a_trace_has_the_names_of_the_file():
    trace = recorded_trace(GOLDEN, TENSORS)
    trace.put(Moment(), {"aggregate": torch.tensor(0.0)})
    named = golden_tensors(trace)
    assert {name: value for name, value in named.items() if name != "u0.mb0.loss"} == {
        name: value for name, value in TENSORS.items() if ".in." not in name
    }


def test_rows_of_a_dynamic_batch_are_given_step_by_step():
    ((batch, groups),) = batches(GOLDEN, TENSORS)
    assert batch == {"responses": 0}
    assert groups == [[[0], [1]], [[2, 3]]]


def test_one_norm_is_a_list_of_one():
    assert numbers(1.5) == [1.5]
    assert numbers(["inf"]) == [float("inf")]
