"""What a loss computes where it has no argument for a setting."""

from dataclasses import replace

import pytest
import torch

from sdpo.parity.candidates.loss_functions import FromLogits
from sdpo.parity.capabilities.absent_settings import found_by_trying
from sdpo.parity.cases.loss_case import LOSS_SETTINGS, transcription_trace
from sdpo.settings.config import SDPOConfig
from tests.helpers import narrow_losses


def computing(rounded: bool = False, factor: float = 1.0, **settings):
    """The gradient of the reference at fixed settings, whatever a case asks for."""

    def trace(case):
        given = {name: getattr(case.config, name) for name in LOSS_SETTINGS} | settings
        found = transcription_trace(replace(case, config=SDPOConfig(**given)))
        values = {name: factor * found[name] for name in ("aggregate", "gradient")}
        return {n: v.bfloat16().float() if rounded else v for n, v in values.items()}

    return trace


@pytest.mark.parametrize(
    "settings",
    [
        {"alpha": 0.0, "distillation_topk": None},
        {"alpha": 0.9, "distillation_topk": None},
        {"alpha": 1.0, "distillation_topk": 20, "distillation_add_tail": True},
        {"alpha": 0.5, "distillation_topk": 100, "distillation_add_tail": False},
        {"alpha": 1.0, "full_logit_distillation": False},
        {"alpha": 0.5, "distillation_topk": None, "loss_agg_mode": "seq-mean-token-mean"},
        {"alpha": 0.5, "distillation_topk": None, "loss_agg_mode": "seq-mean-token-sum-norm"},
    ],
)
def test_the_values_of_absent_settings_are_found(settings):
    found = found_by_trying(computing(**settings), LOSS_SETTINGS, {})
    assert {name: found.settings[name] for name in settings} == settings
    assert found.settings["temperature"] == 1.0
    assert found.settings["is_clip"] is None
    assert "found by trying" in found.note


def test_a_rounded_loss_is_as_close_as_an_exact_one():
    found = found_by_trying(computing(rounded=True, alpha=0.25), {"alpha"}, {})
    assert found.settings == {"alpha": 0.25}
    assert "found by trying" in found.note


@pytest.mark.parametrize("factor", [0.5, 2.0, 3.0, 1 / 3, 4.0])
def test_a_wrong_factor_does_not_make_another_mean(factor):
    found = found_by_trying(computing(factor=factor), {"loss_agg_mode"}, {})
    assert found.settings == {"loss_agg_mode": "token-mean"}


def test_what_is_close_to_nothing_is_taken_as_the_closest_and_says_so():
    def trace(case):
        return {"aggregate": torch.tensor(1.0), "gradient": torch.ones_like(case.student_logits)}

    found = found_by_trying(trace, {"alpha"}, {})
    assert "the closest by trying, cosine" in found.note


def test_what_is_declared_is_not_tried():
    found = found_by_trying(computing(alpha=0.5), {"alpha"}, {"alpha": 0.75})
    assert found.settings == {"alpha": 0.75}
    assert found.note == ""


def test_a_number_that_is_never_none_is_found_out():
    assert FromLogits("k", narrow_losses.with_k).never_none == {"distillation_topk"}
    assert FromLogits("none", narrow_losses.by_config).never_none == frozenset()

    def optional(student_logits, teacher_logits, responses, response_mask, k: int | None):
        return narrow_losses.with_k(student_logits, teacher_logits, responses, response_mask, k)

    # what says that it takes None is wrong where it fails at it
    assert FromLogits("optional", optional).never_none == frozenset()
