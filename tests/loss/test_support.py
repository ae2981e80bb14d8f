"""Log-probs, the student's top-k and its tail, on distributions of a few fractions."""

import math

import pytest
import torch
from torch import Tensor

from sdpo.loss.support import log_probs, support, tail


def logs(*probabilities: float) -> Tensor:
    """Log-probs of one token, `(1, 1, S)`."""
    return torch.tensor([[probabilities]], dtype=torch.float64).log()


def probabilities(log_probabilities: Tensor) -> list[float]:
    return log_probabilities.exp().flatten().tolist()


def test_the_log_prob_of_a_token_is_its_share_of_the_exponentials():
    """Exponentials 1, 2 and 5 add up to 8: token 1 has the probability 2/8."""
    logits = logs(1, 2, 5)
    assert probabilities(log_probs(logits, torch.tensor([[1]]))) == pytest.approx([1 / 4])


def test_a_common_addend_of_the_logits_changes_nothing():
    logits = logs(1, 2, 5) + 7
    assert probabilities(log_probs(logits, torch.tensor([[2]]))) == pytest.approx([5 / 8])


def test_temperature_two_takes_the_root_of_the_exponentials():
    """Of 1, 9 and 36 the roots are 1, 3 and 6, which add up to 10."""
    found = log_probs(logs(1, 9, 36), torch.tensor([[1]]), temperature=2.0)
    assert probabilities(found) == pytest.approx([3 / 10])


def test_the_student_chooses_the_entries_and_the_teacher_is_read_there():
    """The student's two likeliest are tokens 2 and 0; the teacher's would be 1 and 3."""
    student, teacher = logs(1 / 4, 1 / 8, 1 / 2, 1 / 8), logs(1 / 8, 1 / 2, 1 / 16, 5 / 16)
    indices, of_student, of_teacher = support(student, teacher, distillation_topk=2)
    assert indices is not None
    assert indices.tolist() == [[[2, 0]]]
    assert probabilities(of_student) == pytest.approx([1 / 2, 1 / 4])
    assert probabilities(of_teacher) == pytest.approx([1 / 16, 1 / 8])


def test_without_a_limit_the_whole_vocabulary_is_compared_in_its_order():
    student, teacher = logs(1, 3), logs(3, 1)
    indices, of_student, of_teacher = support(student, teacher)
    assert indices is None
    assert probabilities(of_student) == pytest.approx([1 / 4, 3 / 4])
    assert probabilities(of_teacher) == pytest.approx([3 / 4, 1 / 4])


def test_the_tail_is_the_probability_left_over():
    """1/2 and 1/4 leave 1/4 as a third entry."""
    assert probabilities(tail(logs(1 / 2, 1 / 4))) == pytest.approx([1 / 2, 1 / 4, 1 / 4])


def test_without_the_tail_the_entries_are_scaled_to_one():
    """1/2 and 1/4 add up to 3/4: the share of the first is 2/3."""
    found = tail(logs(1 / 2, 1 / 4), distillation_add_tail=False)
    assert probabilities(found) == pytest.approx([2 / 3, 1 / 3])


def test_where_nothing_is_left_the_tail_is_one_in_ten_million():
    """The log mass 0 is taken as -1e-7, so that the tail has 1 - exp(-1e-7), about 1e-7."""
    assert probabilities(tail(logs(3 / 4, 1 / 4)))[2] == pytest.approx(1e-7, rel=1e-6)
    assert math.isfinite(tail(logs(3 / 4, 1 / 4))[0, 0, 2].item())
