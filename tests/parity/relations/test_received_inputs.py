"""What a loss is given on a case, and by what two cases differ for it."""

from dataclasses import replace

import pytest
import torch

from sdpo.parity.candidates.log_prob_functions import FromLogProbs
from sdpo.parity.relations.received_inputs import alike, differences, received
from sdpo.parity.relations.transformed_cases import bases


def from_log_probs(student_log_probs, teacher_log_probs, response_mask):
    return (student_log_probs - teacher_log_probs).mean()


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        (None, None, True),
        (2, 2, True),
        (2, 2.0, False),
        (torch.tensor([1]), torch.tensor([2]), False),
        (torch.tensor([1.0]), torch.tensor([[1.0]]), False),
        (torch.tensor([1.0]), torch.tensor([1.0]).double(), False),
        (torch.tensor([torch.nan]), torch.tensor([torch.nan]), True),
    ],
)
def test_inputs_are_the_same_in_kind_shape_and_value(ours, theirs, same):
    assert alike(ours, theirs) is same


def test_only_what_a_loss_is_given_can_differ_for_it():
    case = bases()[0]
    named = replace(case, id="another", tags=("other",))
    assert differences(None, case, named) == set()
    shifted = replace(case, student_logits=case.student_logits + 4.0)
    assert differences(None, case, shifted) == {"student_logits"}
    candidate = FromLogProbs("planted", from_log_probs)
    assert "student_logits" not in received(candidate, case)
    # log-probs do not know a constant that was added to the logits
    assert differences(candidate, case, shifted) == set()
