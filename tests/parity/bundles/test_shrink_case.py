"""Cases of the loss shrunk by rows, tokens and vocabulary entries."""

import torch

from sdpo.parity.bundles.shrink_case import shrink_case, without
from sdpo.parity.cases.loss_case import LossCase
from tests.helpers.full_case import full_case


def old(of: LossCase) -> torch.Tensor:
    assert of.old_log_probs is not None
    return of.old_log_probs


def test_a_case_shrinks_to_the_element_that_makes_it_fail():
    case = full_case()
    needle = case.student_logits[2, 3, 7].item()
    smallest, tries = shrink_case(case, lambda c: bool((c.student_logits == needle).any()))
    shape = smallest.student_logits.shape
    assert shape == (1, 1, 2)
    assert old(smallest).item() == old(case)[2, 3].item()
    assert tries < 60


def test_responses_stay_the_same_tokens_in_a_smaller_vocabulary():
    case = full_case()
    smaller = without(case, 2, range(0, 16))
    assert smaller is not None
    for source in (case.student_logits, case.teacher_logits):
        assert source.shape[-1] == 32
    picked = smaller.student_logits.gather(-1, smaller.responses[..., None])
    assert torch.equal(picked, case.student_logits.gather(-1, case.responses[..., None]))


def test_two_rows_that_fail_only_together_stay():
    case = full_case()
    marks = {old(case)[row, 0].item() for row in (0, 3)}
    smallest, _ = shrink_case(case, lambda c: marks <= set(old(c).flatten().tolist()))
    assert smallest.student_logits.shape[:2] == (2, 1)


def test_the_search_is_bounded_and_repeats():
    shapes = [shrink_case(full_case(), lambda c: True, most_tries=3)[0].student_logits.shape] * 2
    assert shapes[0] == shapes[1]
    assert shrink_case(full_case(), lambda c: False, most_tries=5)[1] == 5
    assert shrink_case(full_case(1, 1, 2), lambda c: True)[1] == 0
