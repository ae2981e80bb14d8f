"""Faults of `divergence` where the student has 1/2, 1/2 and the teacher 1/4, 3/4."""

from math import log

import pytest
import torch

from sdpo.parity.faults.reference_parts import divergence
from tests.helpers.loss_state import logs, on_support, value

STUDENT, TEACHER = [0.5, 0.5], [0.25, 0.75]
LOST, GAINED = 0.25 * log(1 / 2), 0.75 * log(3 / 2)
"""The terms of KL(teacher‖student)."""
TEACHER_FIRST = LOST + GAINED
STUDENT_FIRST = 0.5 * log(2) + 0.5 * log(2 / 3)


def compared(alpha):
    return on_support(STUDENT, TEACHER, alpha=alpha)


@pytest.mark.parametrize(
    ("fault", "alpha", "expected"),
    [
        ("M01", 0.0, STUDENT_FIRST),
        ("M01", 1.0, TEACHER_FIRST),
        ("M64", 1.0, TEACHER_FIRST),
        ("M65", 0.0, STUDENT_FIRST),
        ("M123", 0.0, STUDENT_FIRST),
        ("M58", 0.0, TEACHER_FIRST / 2),
        ("M59", 0.0, TEACHER_FIRST / log(2)),
        ("M60", 0.0, log(2)),
        ("M62", 0.0, -LOST + GAINED),
        ("M20", 0.0, LOST + 0.05),
        ("M138", 0.0, TEACHER_FIRST),
    ],
)
def test_the_divergence_at_either_end(fault, alpha, expected):
    assert value(fault, compared(alpha)).item() == pytest.approx(expected)


def mixture(inner, outer):
    """(1 - outer) KL(student‖m) + outer KL(teacher‖m), m having `inner` of the teacher."""
    m = [(1 - inner) * s + inner * t for s, t in zip(STUDENT, TEACHER, strict=True)]
    parts = [sum(p * log(p / q) for p, q in zip(x, m, strict=True)) for x in (STUDENT, TEACHER)]
    return (1 - outer) * parts[0] + outer * parts[1]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("M02", mixture(0.75, 0.75)),
        ("M123", mixture(0.75, 0.75)),
        ("M56", mixture(0.5, 0.25)),
        ("M57", mixture(0.25, 0.75)),
        ("M66", mixture(0.5, 0.5)),
        ("M55", mixture(0.25, 0.25) / (0.25 * 0.75)),
        ("M121", mixture(0.25, 0.25)),
    ],
)
def test_the_mixture_at_a_quarter(fault, expected):
    assert divergence(compared(0.25)).item() == pytest.approx(mixture(0.25, 0.25))
    assert value(fault, compared(0.25)).item() == pytest.approx(expected)


def test_a_mixture_without_its_weights_has_twice_the_mass():
    """Each divergence from it is smaller by log 2 times the mass of its first side, which is 1."""
    expected = mixture(0.5, 0.25) - log(2)
    assert value("M03", compared(0.25)).item() == pytest.approx(expected)


def test_the_sum_that_stops_before_the_tail():
    state = on_support(STUDENT, TEACHER, distillation_add_tail=True)
    state.scaled_student = torch.zeros(3)
    assert value("M61", state).item() == pytest.approx(LOST)


@pytest.mark.parametrize(
    ("fault", "expected"), [("M68", -log(2) * log(0.5)), ("M69", log(2)), ("M70", 0.5 - 1 + log(2))]
)
def test_estimates_from_one_token(fault, expected):
    """The student holds it twice as likely as the teacher: the log ratio is log 2."""
    state = compared(0.0)
    state.student_log_probs, state.teacher_log_probs = logs(0.5), logs(0.25)
    assert value(fault, state).item() == pytest.approx(expected)
