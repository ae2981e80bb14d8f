"""Faults of `support` on one token with a vocabulary of four."""

import pytest
import torch

from tests.helpers.loss_state import logs, one_row, trace_of

STUDENT, TEACHER = [[0.4, 0.3, 0.2, 0.1]], [[0.1, 0.4, 0.3, 0.2]]


def token(top_k=2, **settings):
    return one_row(STUDENT, TEACHER, [3], distillation_topk=top_k, **settings)


@pytest.mark.parametrize(
    ("fault", "indices"),
    [
        ("", [0, 1]),
        ("M04", [1, 2]),
        ("M39", [0, 1, 2]),
        ("M40", [0]),
        ("M45", [0, 1, 2, 3]),
        ("M129", [3, 0]),
        ("M130", [1, 2]),
        ("M136", [3, 2]),
        ("M137", [0, 1]),
    ],
)
def test_the_two_entries_that_are_compared(fault, indices):
    """Products of both sides' probabilities are 0.04, 0.12, 0.06 and 0.02 (M130)."""
    assert trace_of(fault, token())["support.indices"].tolist() == [[indices]]


def test_a_support_that_reaches_the_vocabulary_is_cut_by_one():
    assert trace_of("M137", token(4))["support.indices"].tolist() == [[[0, 1, 2]]]


@pytest.mark.parametrize(
    ("fault", "student", "teacher"),
    [
        ("", [0.4, 0.3], [0.1, 0.4]),
        ("M41", [0.4, 0.3], [0.4, 0.3]),
        ("M43", [4 / 7, 3 / 7], [1 / 5, 4 / 5]),
    ],
)
def test_the_probabilities_on_the_support(fault, student, teacher):
    trace = trace_of(fault, token())
    torch.testing.assert_close(trace["support.student"], logs([[student]]))
    torch.testing.assert_close(trace["support.teacher"], logs([[teacher]]))


def test_an_entry_outside_of_the_union_has_no_probability():
    """The student's two are 0 and 1, the teacher's 1 and 2; only 3 is outside."""
    trace = trace_of("M42", token())
    assert trace["support.student"].exp()[0, 0].tolist() == pytest.approx([0.4, 0.3, 0.2, 0.0])


def test_the_support_before_temperature():
    """Log-probs of the sampled token keep the temperature, those on the support lose it."""
    trace = trace_of("M44", token(temperature=2.0))
    torch.testing.assert_close(trace["support.student"], logs([[[0.4, 0.3]]]))
    assert trace["log_probs.student"].exp().item() > 0.1
