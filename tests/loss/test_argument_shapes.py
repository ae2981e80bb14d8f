"""Arguments of another shape or dtype than documented: one message that says what is expected.

The reference adds up what broadcasts: a `(B, T)` distillation mask becomes `(B, B, T)` there.
"""

from typing import Any

import pytest
import torch

from sdpo.fixtures import GoldenDataError, load_families
from sdpo.fused.fused_loss import fused_self_distillation_loss
from sdpo.loss.aggregate import LOSS_AGG_MODES, aggregate
from sdpo.loss.divergence import divergence, sampled_token_divergence
from sdpo.loss.importance import importance, rollout_is_weights
from sdpo.loss.self_distillation import self_distillation_loss
from sdpo.loss.support import log_probs, support
from sdpo.parity.cases.loss_case import loss_cases, loss_from_logits
from sdpo.settings.config import SDPOConfig
from tests.helpers.fused_inputs import inputs as fused_inputs
from tests.helpers.masked_cases import case_with
from tests.helpers.written_goldens import write_loss

B, T, V = 3, 4, 37

WRONG = {
    "responses": [torch.zeros(B, T), torch.zeros(B, T, dtype=torch.int32), torch.zeros(B).long()],
    "response_mask": [torch.ones(B), torch.ones(B, T, 1), torch.ones(1, T), torch.ones(B, T + 1)],
    "old_log_probs": [torch.zeros(B, 1), torch.zeros(T), torch.zeros(B, T, V)],
    "self_distillation_mask": [torch.ones(B, T), torch.ones(B, 1), torch.ones(1), torch.ones(())],
    "rollout_is_weights": [torch.ones(B), torch.ones(B, 1), torch.ones(T, B)],
}
EXPECTED = {
    "responses": r"\(B, T\) = \(3, 4\)|torch.int64",
    "response_mask": r"\(B, T\) = \(3, 4\)",
    "old_log_probs": r"\(B, T\) = \(3, 4\)",
    "self_distillation_mask": r"\(B,\) = \(3,\), one number for each row",
    "rollout_is_weights": r"\(B, T\) = \(3, 4\)",
}
CASES = [(name, number) for name, wrong in WRONG.items() for number in range(len(wrong))]


def right(tokens: int = T) -> dict[str, Any]:
    return {
        "responses": torch.zeros(B, tokens, dtype=torch.int64),
        "response_mask": torch.ones(B, tokens, dtype=torch.int64),
        "old_log_probs": torch.zeros(B, tokens),
        "self_distillation_mask": torch.ones(B),
        "rollout_is_weights": torch.ones(B, tokens),
    }


@pytest.mark.parametrize(("name", "number"), CASES)
def test_a_loss_says_which_argument_is_wrong_and_what_it_expects(name, number):
    given = right() | {name: WRONG[name][number]}
    config = SDPOConfig(distillation_topk=5)
    message = f"{name} is .*expected ({EXPECTED[name]})"
    with pytest.raises(ValueError, match=message):
        self_distillation_loss(torch.randn(B, T, V), torch.randn(B, T, V), **given, config=config)
    sides = fused_inputs()
    with pytest.raises(ValueError, match=message):
        fused_self_distillation_loss(sides.student, sides.teacher, **given, config=config)


@pytest.mark.parametrize(
    ("student", "teacher", "name"),
    [
        (torch.randn(B, V), torch.randn(B, V), "student_logits"),
        (torch.zeros(B, T, V).long(), torch.zeros(B, T, V), "student_logits"),
        (torch.randn(B, T, V), torch.randn(B, T, V + 1), "teacher_logits"),
        (torch.randn(B, T, V), torch.randn(B, T + 1, V), "teacher_logits"),
        (torch.randn(B, T, V), torch.randn(B, 1, V), "teacher_logits"),
    ],
)
def test_logits_too(student, teacher, name):
    with pytest.raises(ValueError, match=f"{name} is .*expected"):
        self_distillation_loss(student, teacher, **right(), config=SDPOConfig())


def places(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape)


STAGES = {
    "loss_mask": lambda: aggregate(places(B, T), places(B, 1)),
    "teacher": lambda: divergence(places(B, T, 5), places(B, T, 1), alpha=0.5),
    "teacher_log_probs": lambda: sampled_token_divergence(places(B, T), places(T)),
    "student_log_probs": lambda: importance(places(B, T), student_log_probs=places(B, 1)),
    "old_log_probs": lambda: importance(
        places(B, T), student_log_probs=places(B, T), old_log_probs=places(T), is_clip=2.0
    ),
    "rollout_is_weights": lambda: importance(
        places(B, T), student_log_probs=places(B, T), rollout_is_weights=places(B, 1)
    ),
    "rollout_log_probs": lambda: rollout_is_weights(
        places(B, T), places(T), places(B, T) + 1, rollout_is_threshold=2.0
    ),
    "responses": lambda: log_probs(places(B, T, V), places(B, T, 2).long()),
    "teacher_logits": lambda: support(places(B, T, V), places(B, T, V - 1), distillation_topk=3),
}


@pytest.mark.parametrize("name", STAGES)
def test_each_stage_by_itself_does(name):
    with pytest.raises(ValueError, match=f"{name} is .*expected"):
        STAGES[name]()


@pytest.mark.parametrize("loss_agg_mode", LOSS_AGG_MODES)
@pytest.mark.parametrize("tokens", [0, 1])
@pytest.mark.parametrize(
    "mode",
    [
        {"distillation_topk": 5},
        {"distillation_topk": None},
        {"full_logit_distillation": False, "alpha": 1.0},
    ],
    ids=["top-k", "full vocabulary", "sampled"],
)
def test_responses_of_no_token_at_all_give_zero(mode, tokens, loss_agg_mode):
    """As the reference does in `token-mean`; in its other modes it is NaN."""
    given = right(tokens)
    if tokens:
        given["response_mask"][:] = 0
    student = torch.randn(B, tokens, V, requires_grad=True)
    config = SDPOConfig(**mode, loss_agg_mode=loss_agg_mode)
    loss = self_distillation_loss(student, torch.randn(B, tokens, V), **given, config=config)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss == 0
    assert gradient.shape == student.shape
    assert not gradient.any()
    student_side, teacher_side = (s._replace(hidden=s.hidden[:, :tokens]) for s in SIDES)
    fused = fused_self_distillation_loss(student_side, teacher_side, **given, config=config)
    assert fused == 0
    fused.backward()
    settings = {n: getattr(config, n) for n in ("alpha", "is_clip", "full_logit_distillation")}
    settings |= {"distillation_topk": config.distillation_topk, "temperature": 1.0}
    of_reference = loss_from_logits(
        student, student.detach(), **given, **settings, loss_agg_mode=loss_agg_mode
    )
    assert of_reference == 0 or loss_agg_mode != "token-mean"


SIDES = (fused_inputs().student, fused_inputs().teacher)


def test_no_row_at_all_gives_zero():
    student = torch.randn(0, T, V, requires_grad=True)
    given = {name: value[:0] for name, value in right().items()}
    loss = self_distillation_loss(student, student.detach(), **given, config=SDPOConfig())
    assert loss == 0


@pytest.mark.parametrize("shape", [(3, 4), (3, 1)])
def test_golden_data_of_another_shape_are_one_clear_error(tmp_path, shape):
    case = case_with(torch.int64, signal=torch.float32, distillation_topk=4)
    folder = write_loss(
        tmp_path / "loss", [case], **{"in.self_distillation_mask": torch.ones(shape)}
    )
    with pytest.raises(GoldenDataError, match=r"self_distillation_mask.*expected \(B,\) = \(3,\)"):
        loss_cases(load_families(folder)[0])
