"""Faults of `log_probs` on two tokens whose probabilities are powers and simple fractions."""

import pytest
import torch

from tests.helpers.loss_state import logs, one_row, trace_of

STUDENT = [[0.5, 0.25, 0.25], [0.2, 0.4, 0.4]]
TEACHER = [[0.8, 0.1, 0.1], [0.6, 0.2, 0.2]]
RESPONSES = [0, 1]


@pytest.mark.parametrize(
    ("fault", "student", "teacher"),
    [
        ("", [0.5, 0.4], [0.8, 0.2]),
        ("M14", [0.5, 0.4], [0.6, 0.1]),
        ("M37", [0.2, 0.25], [0.6, 0.1]),
        ("M38", [0.25, 0.2], [0.1, 0.6]),
    ],
)
def test_what_is_one_token_late_belongs_to_the_token_before(fault, student, teacher):
    """The row has two tokens, so that the first one's place is taken by the second's."""
    trace = trace_of(fault, one_row(STUDENT, TEACHER, RESPONSES))
    torch.testing.assert_close(trace["log_probs.student"], logs([student]))
    torch.testing.assert_close(trace["log_probs.teacher"], logs([teacher]))


@pytest.mark.parametrize(
    ("fault", "student", "teacher"),
    [
        ("", 2 / 3, 1 / 3),
        ("M31", 2 / 3, 1 / 5),
        ("M33", 4 / 5, 1 / 3),
        ("M34", 4 / 5, 1 / 5),
        ("M35", 16 / 17, 1 / 17),
    ],
)
def test_a_temperature_of_two_takes_the_root_of_odds_of_four_to_one(fault, student, teacher):
    """Odds are 4, at temperature 2 therefore 2; multiplied by the temperature they are 16."""
    state = one_row([[0.8, 0.2]], [[0.2, 0.8]], [0], temperature=2.0)
    trace = trace_of(fault, state)
    torch.testing.assert_close(trace["log_probs.student"], logs([[student]]))
    torch.testing.assert_close(trace["log_probs.teacher"], logs([[teacher]]))


def test_log_softmax_in_bfloat16_has_three_digits():
    exact, low = (trace_of(f, one_row(STUDENT, TEACHER, RESPONSES)) for f in ("", "M32"))
    error = (low["log_probs.student"] - exact["log_probs.student"]).abs().max()
    assert 1e-5 < error < 1e-2


def test_the_teacher_alone_in_float32_leaves_the_student_in_float64():
    exact, low = (trace_of(f, one_row(STUDENT, TEACHER, RESPONSES)) for f in ("", "M135"))
    assert torch.equal(low["log_probs.student"], exact["log_probs.student"])
    error = (low["log_probs.teacher"] - exact["log_probs.teacher"]).abs().max()
    assert 0 < error < 1e-6
