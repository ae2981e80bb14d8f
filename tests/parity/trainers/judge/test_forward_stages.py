"""Tokens and old log-probs of a micro-batch beside the reference's."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sdpo.parity.compare.statuses import Status
from sdpo.parity.trainers.judge.forward_stages import (
    OldLogProbs,
    compare_old_log_probs,
    compare_student_tokens,
)
from sdpo.parity.trainers.scenarios.training_record import MicroBatch

SCENARIO: Any = SimpleNamespace(id="T01")
BATCH = {
    "input_ids": torch.tensor([[0, 5, 6, 7, 0], [4, 5, 6, 7, 8]]),
    "attention_mask": torch.tensor([[0, 1, 1, 1, 0], [1, 1, 1, 1, 1]]),
    "position_ids": torch.tensor([[0, 0, 1, 2, 2], [0, 1, 2, 3, 4]]),
    "response_mask": torch.tensor([[1, 0], [1, 1]]),
}


def statuses(**changes):
    """Compare the first row alone, whose padding in front and behind is left out."""
    inputs = {
        "input_ids": torch.tensor([[5, 6, 7]]),
        "attention_mask": torch.tensor([[1, 1, 1]]),
        "response_mask": torch.tensor([[1]]),
    }
    compared = compare_student_tokens(SCENARIO, MicroBatch([0], inputs | changes), BATCH)
    return {comparison.stage: comparison.status for comparison in compared}


def test_the_same_tokens_hold_whatever_the_padding_and_the_first_position():
    assert statuses() == {"distillation_mask": Status.MATCH}
    assert statuses(position_ids=torch.tensor([[3, 4, 5]])) == statuses()


@pytest.mark.parametrize(
    ("changes", "stage"),
    [
        ({"input_ids": torch.tensor([[5, 6, 8]])}, "log_probs"),
        ({"position_ids": torch.tensor([[0, 1, 3]])}, "log_probs"),
        ({"attention_mask": torch.tensor([[1, 0, 1]])}, "log_probs"),
        ({"response_mask": torch.tensor([[0]])}, "distillation_mask"),
    ],
)
def test_other_tokens_positions_or_masks_diverge_at_their_stage(changes, stage):
    assert statuses(**changes)[stage] == Status.DIVERGENT


def test_old_log_probs_are_cut_to_rows_and_width_and_compared_where_tokens_count():
    value = torch.tensor([[9.0, 9.0, 9.0], [-1.0, -2.0, 9.0]])
    old = OldLogProbs(value, value.double()).of([1], 2)
    mask = torch.tensor([[1.0, 0.0]])
    right, wrong = (torch.tensor([[v, 50.0]]) for v in (-1.0, -1.5))
    assert compare_old_log_probs(SCENARIO, old, right, mask).status == Status.MATCH
    compared = compare_old_log_probs(SCENARIO, old, wrong, mask)
    assert compared.status == Status.DIVERGENT
    assert compared.note.startswith("old log-probs: ")
