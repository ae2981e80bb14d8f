"""Faults of `gradient`: the loss stays as it is, and its derivative is another."""

from math import log
from typing import Any

import pytest
import torch

from sdpo.parity.faults.catalogue import BY_ID
from sdpo.parity.faults.evaluate_fault import loss_from_log_probs
from sdpo.settings.config import SDPOConfig
from tests.helpers.loss_state import logs, one_row, trace_of

STUDENT, TEACHER = [[0.5, 0.25, 0.25]], [[0.25, 0.5, 0.25]]
SURROGATE = SDPOConfig(full_logit_distillation=False, alpha=1.0, is_clip=None)


def gradient_of(fault: str, **settings: Any) -> tuple[float, Any, Any]:
    """Loss and gradient to the student's and the teacher's logits of one token."""
    state = one_row(STUDENT, TEACHER, [0], **settings)
    loss = trace_of(fault, state)["loss"]
    if loss.requires_grad:
        loss.backward()
    return loss.item(), state.student_logits.grad, state.teacher_logits.grad


def test_the_gradient_of_kl_teacher_student_is_the_difference_of_probabilities():
    loss, student, teacher = gradient_of("")
    assert loss == pytest.approx(0.25 * log(1 / 2) + 0.5 * log(2))
    assert student[0, 0].tolist() == pytest.approx([0.25, -0.25, 0.0])
    assert teacher is None


@pytest.mark.parametrize(
    ("fault", "factor"), [("M93", -1), ("M94", 4), ("M133", 2), ("M134", 0.5), ("M23", 0)]
)
def test_the_gradient_times_a_factor(fault, factor):
    (loss, student, _), (same, changed, _) = gradient_of(""), gradient_of(fault)
    assert same == loss
    torch.testing.assert_close(changed, factor * student)


def test_the_temperature_is_missing_in_the_gradient():
    right, wrong = (gradient_of(fault, temperature=2.0)[1] for fault in ("", "M96"))
    torch.testing.assert_close(wrong, 2 * right)


def test_a_detached_loss_gives_no_gradient():
    assert gradient_of("M95")[1] is None


def test_the_teacher_gets_a_gradient_too():
    assert gradient_of("M21")[2].abs().max() > 0


def test_a_gradient_in_bfloat16_has_three_digits():
    right, wrong = (gradient_of(fault, temperature=0.7)[1] for fault in ("", "M98"))
    assert 0 < (right - wrong).abs().max() < 1e-2


@pytest.mark.parametrize(
    ("fault", "expected"),
    [("", log(2)), ("M22", log(1 / 2)), ("M102", log(2) + log(1 / 2))],
)
def test_the_surrogate_of_a_token_twice_as_likely_as_the_teacher_says(fault, expected):
    """(s - t) s with s = log 1/2, t = log 1/4: detached factors decide which part is left."""
    student: Any = logs([[0.5]]).requires_grad_()
    loss = loss_from_log_probs(BY_ID[fault].parts if fault else {})(
        student_log_probs=student,
        teacher_log_probs=logs([[0.25]]),
        response_mask=torch.ones(1, 1),
        config=SURROGATE,
    )
    loss.backward()
    assert loss.item() == pytest.approx(log(2) * log(1 / 2))
    assert student.grad.item() == pytest.approx(expected)


def test_without_the_normaliser_a_logit_gets_its_terms_alone():
    """KL(teacher‖student) falls by the teacher's probability with each log-prob."""
    assert gradient_of("M101")[1][0, 0].tolist() == pytest.approx([-0.25, -0.5, -0.25])


def test_probabilities_that_are_constants_leave_their_logarithms():
    """d/ds of p (s - t) with p held is p; through the softmax of all entries that adds up to 0."""
    assert gradient_of("M103", alpha=1.0)[1][0, 0].tolist() == pytest.approx([0, 0, 0], abs=1e-12)
