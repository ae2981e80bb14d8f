"""Faults of `tail` on a support of two entries that leaves a quarter out."""

import pytest
import torch

from tests.helpers.loss_state import logs, on_support, value

STUDENT, TEACHER = [0.5, 0.25], [0.25, 0.25]
RENORMALISED = [2 / 3, 1 / 3]
LIMIT = 1e-7


@pytest.mark.parametrize(
    ("fault", "student", "teacher"),
    [
        ("M05b", [0.5, 0.25], [0.25, 0.25]),
        ("M06", [0.5, 0.25, 0.25], [0.25, 0.25, 0.5]),
        ("M06b", [0.5, 0.25, 0.25], [0.25, 0.25, 0.5]),
        ("M47", [0.5, 0.25, 0.25], [0.5, 0.5, LIMIT]),
        ("M48", [*RENORMALISED, LIMIT], [0.25, 0.25, 0.5]),
        ("M49", [*RENORMALISED, LIMIT], [0.5, 0.5, LIMIT]),
        ("M50", RENORMALISED, [0.5, 0.5]),
        ("M52", [0.5, 0.25, 0.25], [0.25, 0.25, 0.25]),
    ],
)
def test_where_a_tail_is_asked(fault, student, teacher):
    found = value(fault, on_support(STUDENT, TEACHER, distillation_add_tail=True))
    torch.testing.assert_close(found, (logs(student), logs(teacher)), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("fault", "student", "teacher"),
    [
        ("M51", [0.5, 0.25, 0.25], [0.25, 0.25, 0.5]),
        ("M53", RENORMALISED, [0.25, 0.25]),
        ("M54", [0.5, 0.25], [0.5, 0.5]),
        ("M120", RENORMALISED, [0.5, 0.5]),
    ],
)
def test_where_renormalising_is_asked(fault, student, teacher):
    found = value(fault, on_support(STUDENT, TEACHER, distillation_add_tail=False))
    torch.testing.assert_close(found, (logs(student), logs(teacher)))


@pytest.mark.parametrize(("fault", "limit"), [("M46", 1e-3), ("M118", 1e-6), ("M119", 1e-8)])
def test_a_tail_of_nothing_is_the_limit(fault, limit):
    """The mass inside is at most exp(-limit), so that limit - limit² / 2 … are left."""
    student, _ = value(fault, on_support([0.5, 0.5], TEACHER, distillation_add_tail=True))
    assert student[-1].exp().item() == pytest.approx(limit, rel=1e-3)


def test_without_its_limit_the_tail_of_nothing_is_zero():
    student, _ = value("M06", on_support([0.5, 0.5], TEACHER, distillation_add_tail=True))
    assert student[-1].exp().item() < 1e-12
