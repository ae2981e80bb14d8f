"""The fused loss is the loss of `sdpo.loss.self_distillation`, and skips what is masked."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from sdpo.fused import lm_head, vocabulary_scan
from sdpo.fused.fused_loss import fused_self_distillation_loss
from sdpo.fused.lm_head import Head, Projection
from sdpo.loss.self_distillation import self_distillation_loss
from sdpo.settings.config import SDPOConfig
from sdpo.settings.rules import LOSS_AGG_MODES
from tests.helpers.fused_inputs import (
    EXACT,
    MODES,
    PLACES,
    by_chunks,
    config,
    distance,
    inputs,
    narrow_blocks,
    whole_logits,
)

__all__ = ["narrow_blocks"]


@pytest.mark.parametrize(("mode", "loss_agg_mode"), [*product(MODES, LOSS_AGG_MODES)])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_loss_and_gradients_are_those_of_the_logits(mode, loss_agg_mode, alpha):
    settings_ = config(mode, alpha=alpha, loss_agg_mode=loss_agg_mode, temperature=0.7)
    assert distance(inputs(), settings_) < EXACT


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("head", [{"bias": False}, {"scale": 1.0}, {"softcap": 2.0}])
def test_heads_of_the_common_architectures(mode, head):
    for temperature in (1.0, 1.3):
        assert distance(inputs(**head), config(mode, temperature=temperature)) < EXACT


@pytest.mark.parametrize("mode", MODES)
def test_trust_region_mixes_the_logits(mode):
    settings_ = config(mode, teacher_regularization="trust-region", teacher_update_rate=0.3)
    assert distance(inputs(softcap=5.0), settings_) < EXACT


@pytest.mark.parametrize("left_out", PLACES)
def test_optional_arguments(left_out):
    on = inputs()
    rest = {name: tensor for name, tensor in on.optional.items() if name != left_out}
    settings_ = config("topk_tail", is_clip=None if left_out == "old_log_probs" else 1.2)
    assert distance(replace(on, optional=rest), settings_) < EXACT


def test_entries_that_the_bias_forbids():
    on = inputs()
    for side in (on.student, on.teacher):
        assert side.head.bias is not None
        side.head.bias.data[20:] = -torch.inf
    for mode in ("topk_tail", "topk_renorm", "topk_above_width"):
        assert distance(on, config(mode)) < EXACT


def test_a_full_tail_gets_no_gradient():
    """Where the K entries hold all but 1e-7 the tail is at its limit."""
    on = inputs(scale=30.0)
    assert distance(on, config("topk_tail", alpha=0.0)) < EXACT


# --- masks --------------------------------------------------------------------------------------


def test_masked_places_are_not_read():
    on = inputs()
    counts = (on.response_mask * on.optional["self_distillation_mask"].unsqueeze(-1)) != 0
    expected = by_chunks(on, config("topk_tail"))
    for tensor in (on.student.hidden.data, on.teacher.hidden, on.optional["old_log_probs"]):
        tensor[~counts] = torch.nan
    on.responses[~counts] = -1
    loss, gradients = by_chunks(on, config("topk_tail"))
    assert torch.equal(loss, expected[0])
    for actual, wanted in zip(gradients, expected[1], strict=True):
        assert torch.equal(actual, wanted)
    assert not gradients[0][~counts].any()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("loss_agg_mode", LOSS_AGG_MODES)
def test_without_any_token_loss_and_gradients_are_zero(mode, loss_agg_mode):
    on = inputs()
    on.optional["self_distillation_mask"].zero_()
    loss, gradients = by_chunks(on, config(mode, loss_agg_mode=loss_agg_mode))
    assert loss == 0
    assert not any(gradient.any() for gradient in gradients)


# --- precision ----------------------------------------------------------------------------------


def test_bits_are_stable_for_one_chunk_size_and_near_for_others():
    on = inputs()
    expected = by_chunks(on, config("topk_tail"), 2)
    again = by_chunks(on, config("topk_tail"), 2)
    assert torch.equal(expected[0], again[0])
    assert all(torch.equal(a, b) for a, b in zip(expected[1], again[1], strict=True))
    for size in (1, 3, 5, None):
        assert distance(on, config("topk_tail"), chunk_tokens=size) < EXACT


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    on, settings_ = inputs(bias=False), config("topk_tail")

    def cast(side: Projection, wide: bool) -> Projection:
        hidden, weight = (
            t.detach().to(dtype).to(torch.float32 if wide else dtype)
            for t in (side.hidden, side.head.weight)
        )
        if side is on.student:
            hidden, weight = hidden.requires_grad_(), weight.requires_grad_()
        return Projection(hidden, side.head._replace(weight=weight))

    narrow, wide = (
        by_chunks(replace(on, student=cast(on.student, w), teacher=cast(on.teacher, w)), settings_)
        for w in (False, True)
    )
    assert narrow[0].dtype == torch.float32
    assert torch.equal(narrow[0], wide[0])
    for actual, expected in zip(narrow[1], wide[1], strict=True):
        assert actual.dtype == dtype
        assert torch.equal(actual, expected.to(dtype))


def test_autocast_does_not_reach_the_loss():
    on = inputs()
    plain = by_chunks(on, config("topk_tail"))
    with torch.autocast("cpu", torch.bfloat16):
        cast = by_chunks(on, config("topk_tail"))
    assert torch.equal(plain[0], cast[0])


@pytest.mark.parametrize("apart", [1e-3, 1e-2, 1.0])
@pytest.mark.parametrize("size", [0.3, 3.0])
def test_float32_is_as_near_to_float64_as_from_logits(apart, size, monkeypatch):
    """Also where student and teacher are so near that most of the gradient is rounding."""
    monkeypatch.setattr(lm_head, "BLOCK", 128)
    monkeypatch.setattr(vocabulary_scan, "GROUP", 64)
    random = torch.Generator().manual_seed(0)
    hidden, others = torch.randn(2, 4, 6, 32, generator=random)
    weight = torch.randn(426, 32, generator=random) * size / 32**0.5
    responses, mask = torch.randint(0, 426, (4, 6), generator=random), torch.ones(4, 6)
    settings_ = SDPOConfig(distillation_topk=20, is_clip=None)

    def gradients(function, dtype):
        leaves = [hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()]
        student = Projection(leaves[0], Head(leaves[1]))
        teacher = Projection((hidden + apart * others).to(dtype), Head(weight.to(dtype)))
        loss = function(student, teacher, responses, mask, config=settings_)
        found = torch.autograd.grad(loss, leaves)
        return torch.cat([gradient.double().flatten() for gradient in found])

    def from_logits(student, teacher, *rest, config):
        both = whole_logits(student), whole_logits(teacher)
        return self_distillation_loss(*both, *rest, config=config)

    truth = gradients(from_logits, torch.float64)
    usual = (gradients(from_logits, torch.float32) - truth).norm()
    found = (gradients(fused_self_distillation_loss, torch.float32) - truth).norm()
    assert 0 < found <= 1.5 * usual


# --- gradients ----------------------------------------------------------------------------------


def test_a_frozen_head_gets_no_gradient_and_the_hidden_states_the_same():
    on = inputs()
    expected = by_chunks(on, config("topk_tail"))[1][0]
    weight, bias = on.student.head.weight.detach(), on.student.head.bias
    assert bias is not None
    head = on.student.head._replace(weight=weight, bias=bias.detach())
    frozen = replace(on, student=on.student._replace(head=head))
    (found,) = by_chunks(frozen, config("topk_tail"))[1]
    assert torch.equal(found, expected)


def test_the_losses_own_gradient_scales_all():
    on = inputs()
    expected = by_chunks(on, config("topk_tail"))[1]
    loss = fused_self_distillation_loss(
        on.student, on.teacher, on.responses, on.response_mask, **on.optional,
        config=config("topk_tail"), chunk_tokens=2,
    )  # fmt: skip
    (0.25 * loss).backward()
    for leaf, gradient in zip(on.leaves, expected, strict=True):
        assert leaf.grad is not None
        torch.testing.assert_close(leaf.grad, 0.25 * gradient, rtol=1e-15, atol=0)


def test_teacher_gets_no_gradient():
    on = inputs()
    on.teacher.hidden.requires_grad_()
    on.teacher.head.weight.requires_grad_()
    loss = fused_self_distillation_loss(
        on.student, on.teacher, on.responses, on.response_mask, **on.optional,
        config=config("topk_tail"),
    )  # fmt: skip
    loss.backward()
    assert on.teacher.hidden.grad is None
    assert on.teacher.head.weight.grad is None


def test_backward_goes_once():
    on = inputs()
    loss = fused_self_distillation_loss(
        on.student, on.teacher, on.responses, on.response_mask, **on.optional,
        config=config("topk_tail"),
    )  # fmt: skip
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward once"):
        loss.backward()


def test_without_gradients_none_are_computed(monkeypatch):
    on, calls = inputs(), []
    monkeypatch.setattr(lm_head.HeadGradients, "add", lambda *arguments: calls.append(1))
    with torch.no_grad():
        loss = fused_self_distillation_loss(
            on.student, on.teacher, on.responses, on.response_mask, **on.optional,
            config=config("topk_tail"),
        )  # fmt: skip
    assert not loss.requires_grad
    assert not calls


@pytest.mark.parametrize(("name", "value"), [("chunk_tokens", 0), ("old_log_probs", None)])
def test_wrong_arguments_are_named(name, value):
    on = inputs()
    arguments = {**on.optional, "config": config("topk_tail"), name: value}
    with pytest.raises(ValueError, match=name):
        fused_self_distillation_loss(
            on.student, on.teacher, on.responses, on.response_mask, **arguments
        )
