"""The whole loss of two tokens, from logits that are logs of fractions."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sdpo.loss.self_distillation import self_distillation_loss, self_distillation_stages
from sdpo.settings.stage_settings import LossSettings

LOG2, LOG3 = math.log(2), math.log(3)
RESPONSES, BOTH = torch.tensor([[0, 2]]), torch.ones(1, 2)


def logits(*tokens: tuple[float, ...]) -> Tensor:
    """`(1, T, V)`: the logs of each token's probabilities."""
    return torch.tensor([tokens], dtype=torch.float64).log()


STUDENT = logits((1 / 2, 1 / 4, 1 / 4), (1 / 4, 1 / 4, 1 / 2))
TEACHER = logits((1 / 4, 3 / 8, 3 / 8), (1 / 4, 1 / 4, 1 / 2))
"""They differ at the first token only."""


def settings(**changes: Any) -> LossSettings:
    return LossSettings(**{"alpha": 0.0, "is_clip": None, **changes})


def test_top_one_with_a_tail_compares_two_entries():
    """First token: student (1/2, 1/2), teacher (1/4, 3/4); the second has no divergence.

    KL(teacher‖student) = 3/4 log 3 - log 2, as in `test_divergence.py`, over two tokens.
    """
    config = settings(distillation_topk=1)
    stages = self_distillation_stages(STUDENT, TEACHER, RESPONSES, BOTH, config=config)
    assert stages.tokens.tails is not None
    student, teacher = (side[0, 0].exp().tolist() for side in stages.tokens.tails)
    assert student == pytest.approx([1 / 2, 1 / 2])
    assert teacher == pytest.approx([1 / 4, 3 / 4])
    assert stages.aggregate.item() == pytest.approx((3 / 4 * LOG3 - LOG2) / 2)


def test_top_one_without_a_tail_compares_certainty_with_certainty():
    config = settings(distillation_topk=1, distillation_add_tail=False)
    loss = self_distillation_loss(STUDENT, TEACHER, RESPONSES, BOTH, config=config)
    assert loss.item() == pytest.approx(0.0, abs=1e-15)


def test_the_gradient_by_a_logit_is_the_students_probability_less_the_teachers():
    """Over the whole vocabulary d KL(teacher‖student) / d z = student - teacher, over 2 tokens."""
    student = STUDENT.clone().requires_grad_()
    config = settings(distillation_topk=None)
    loss = self_distillation_loss(student, TEACHER, RESPONSES, BOTH, config=config)
    (gradient,) = torch.autograd.grad(loss, student)
    expected = [1 / 8, -1 / 16, -1 / 16, 0, 0, 0]  # (1/4, -1/8, -1/8) and nothing, halved
    assert gradient.flatten().tolist() == pytest.approx(expected, abs=1e-15)


def test_the_sampled_token_alone():
    """Token 0: student 1/2, teacher 1/4: log 2 · log(1/2) = -(log 2)²; token 2 has the ratio 1."""
    config = settings(full_logit_distillation=False, alpha=1.0)
    stages = self_distillation_stages(STUDENT, TEACHER, RESPONSES, BOTH, config=config)
    assert stages.tokens.support is None
    assert stages.aggregate.item() == pytest.approx(-(LOG2**2) / 2)


def test_rows_without_a_teacher_prompt_count_no_tokens():
    """Half of the tokens remain; the loss is the first row's, whatever the second row holds."""
    poison = torch.full_like(STUDENT, math.nan)
    student = torch.cat([STUDENT, poison]).requires_grad_()
    loss = self_distillation_loss(
        student,
        torch.cat([TEACHER, poison]),
        RESPONSES.expand(2, -1),
        BOTH.expand(2, -1),
        self_distillation_mask=torch.tensor([1.0, 0.0]),
        config=settings(distillation_topk=1),
    )
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.item() == pytest.approx((3 / 4 * LOG3 - LOG2) / 2)
    assert gradient[1].eq(0).all()


def test_no_gradient_reaches_the_teacher():
    teacher, student = TEACHER.clone().requires_grad_(), STUDENT.clone().requires_grad_()
    loss = self_distillation_loss(student, teacher, RESPONSES, BOTH, config=settings())
    assert torch.autograd.grad(loss, teacher, allow_unused=True) == (None,)
