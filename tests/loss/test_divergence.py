"""The divergence of fractions from fractions, in multiples of log 2 and log 3."""

import math

import pytest
import torch
from torch import Tensor

from sdpo.loss.divergence import divergence, sampled_token_divergence

LOG2, LOG3 = math.log(2), math.log(3)


def logs(*probabilities: float) -> Tensor:
    """Log-probs of one token, `(1, 1, S)`."""
    return torch.tensor([[probabilities]], dtype=torch.float64).log()


STUDENT, TEACHER = logs(1 / 2, 1 / 2), logs(1 / 4, 3 / 4)


def test_alpha_zero_is_the_divergence_of_the_teacher_from_the_student():
    """KL(teacher‖student) = 1/4 log(1/4 ÷ 1/2) + 3/4 log(3/4 ÷ 1/2).

    That is -1/4 log 2 + 3/4 (log 3 - log 2) = 3/4 log 3 - log 2, about 0.131.
    """
    expected = 3 / 4 * LOG3 - LOG2
    assert divergence(STUDENT, TEACHER, alpha=0.0).item() == pytest.approx(expected)


def test_alpha_one_is_the_divergence_of_the_student_from_the_teacher():
    """KL(student‖teacher) = 1/2 log(1/2 ÷ 1/4) + 1/2 log(1/2 ÷ 3/4) = log 2 - 1/2 log 3."""
    expected = LOG2 - LOG3 / 2
    assert divergence(STUDENT, TEACHER, alpha=1.0).item() == pytest.approx(expected)


def test_alpha_one_half_is_the_mean_of_both_from_the_middle():
    """Disjoint sides (1, 0) and (0, 1) have the middle (1/2, 1/2): each is log 2 away from it."""
    found = divergence(logs(1, 0), logs(0, 1), alpha=0.5)
    assert found.item() == pytest.approx(LOG2)


def test_between_the_ends_alpha_is_the_teachers_share_of_the_mixture():
    """With alpha 1/4 the mixture of (1, 0) and (0, 1) is (3/4, 1/4).

    The student is log(4/3) away from it, the teacher log 4, with the weights 3/4 and 1/4.
    """
    found = divergence(logs(1, 0), logs(0, 1), alpha=0.25)
    assert found.item() == pytest.approx(3 / 4 * math.log(4 / 3) + 1 / 4 * math.log(4))


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
def test_equal_sides_have_no_divergence(alpha):
    assert divergence(TEACHER, TEACHER, alpha=alpha).item() == pytest.approx(0.0, abs=1e-15)


def test_an_entry_without_probability_adds_nothing():
    """Of (0, 1) the divergence from (1/2, 1/2) is 1 · log 2; 0 · log 0 counts as 0."""
    assert divergence(STUDENT, logs(0, 1), alpha=0.0).item() == pytest.approx(LOG2)


def test_what_the_other_side_excludes_is_infinitely_far():
    assert divergence(logs(0, 1), STUDENT, alpha=0.0).item() == math.inf


def test_the_sampled_token_gives_the_log_ratio_times_the_students_gradient():
    """Student 1/4, teacher 1/2: the ratio is -log 2, the value -log 2 · log(1/4) = 2 (log 2)²."""
    student = torch.tensor(1 / 4, dtype=torch.float64).log().requires_grad_()
    teacher = torch.tensor(1 / 2, dtype=torch.float64).log()
    value = sampled_token_divergence(student, teacher)
    (slope,) = torch.autograd.grad(value, student)
    assert value.item() == pytest.approx(2 * LOG2**2)
    assert slope.item() == pytest.approx(-LOG2)
