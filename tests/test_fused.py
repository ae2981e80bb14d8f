"""The fused loss is the loss of `sdpo.loss`, takes little memory, and skips what is masked."""

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sdpo import fused, heads, vocabulary
from sdpo.aggregate import LOSS_AGG_MODES
from sdpo.config import SDPOConfig
from sdpo.fused import fused_self_distillation_loss
from sdpo.heads import Head, Projection
from sdpo.loss import self_distillation_loss
from sdpo.teacher import trust_region_logits

CPU = torch.device("cpu")
ROWS, TOKENS, HIDDEN, WIDTH = 3, 4, 6, 37
MODES = {
    "topk_tail": {"distillation_topk": 5},
    "topk_renorm": {"distillation_topk": 5, "distillation_add_tail": False},
    "topk_above_width": {"distillation_topk": 50},
    "full_vocab": {"distillation_topk": None},
    "sampled": {"full_logit_distillation": False, "alpha": 1.0},
}
PLACES = ("old_log_probs", "self_distillation_mask", "rollout_is_weights")


@pytest.fixture(autouse=True)
def narrow_blocks(monkeypatch):
    """Several blocks, the last one shorter, of several groups, the last one shorter too."""
    monkeypatch.setattr(heads, "BLOCK", 16)
    for module in (fused, vocabulary):
        monkeypatch.setattr(module, "GROUP", 4)


def config(mode: str, **settings_: Any) -> SDPOConfig:
    return SDPOConfig(**{"is_clip": 1.2, **settings_, **MODES[mode]})


@dataclass(frozen=True)
class Inputs:
    """One loss; `responses` and masks as for `self_distillation_loss`."""

    student: Projection
    teacher: Projection
    responses: Tensor
    response_mask: Tensor
    optional: dict[str, Any]
    live: Projection | None = None

    @property
    def leaves(self) -> list[Tensor]:
        hidden, head = self.student
        return [t for t in (hidden, head.weight, head.bias) if t is not None and t.requires_grad]


def inputs(
    *, bias: bool = True, scale: float = 0.5, softcap: float | None = None, width: int = WIDTH
) -> Inputs:
    random = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    def side() -> Projection:
        head = Head(numbers(width, HIDDEN), numbers(width) if bias else None, scale, softcap)
        return Projection(numbers(ROWS, TOKENS, HIDDEN), head)

    student, teacher, live = side(), side(), side()
    for leaf in (student.hidden, student.head.weight, student.head.bias):
        if leaf is not None:
            leaf.requires_grad_()
    return Inputs(
        student,
        teacher,
        torch.randint(0, width, (ROWS, TOKENS), generator=random),
        torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0]]),
        {
            "old_log_probs": numbers(ROWS, TOKENS) - 3,
            "self_distillation_mask": torch.tensor([1.0, 0.0, 1.0]),
            "rollout_is_weights": numbers(ROWS, TOKENS).abs(),
        },
        live,
    )


def whole_logits(side: Projection) -> Tensor:
    hidden, (weight, bias, scale, softcap) = side
    logits = (hidden @ weight.T + (0 if bias is None else bias)) * scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def plainly(on: Inputs, settings_: SDPOConfig) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Loss and gradients through all logits."""
    teacher = whole_logits(on.teacher)
    if settings_.teacher_regularization == "trust-region":
        assert on.live is not None
        teacher = trust_region_logits(teacher, whole_logits(on.live), settings_.teacher_update_rate)
    loss = self_distillation_loss(
        whole_logits(on.student),
        teacher,
        on.responses,
        on.response_mask,
        **on.optional,
        config=settings_,
    )
    return loss.detach(), torch.autograd.grad(loss, on.leaves)


def by_chunks(
    on: Inputs, settings_: SDPOConfig, chunk_tokens: int | None = 2
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Loss and gradients of the fused loss."""
    loss = fused_self_distillation_loss(
        on.student,
        on.teacher,
        on.responses,
        on.response_mask,
        **on.optional,
        live=on.live if settings_.teacher_regularization == "trust-region" else None,
        config=settings_,
        chunk_tokens=chunk_tokens,
    )
    return loss.detach(), torch.autograd.grad(loss, on.leaves)


def distance(on: Inputs, settings_: SDPOConfig, **arguments: int | None) -> float:
    """Largest difference between the two in loss and gradients, over the largest entry."""
    (loss, gradients), (other, others) = (
        plainly(on, settings_),
        by_chunks(on, settings_, **arguments),
    )
    pairs = zip((loss, *gradients), (other, *others), strict=True)
    return max(((a - b).abs().max() / a.abs().max()).item() for a, b in pairs)


EXACT = 1e-12


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
    monkeypatch.setattr(heads.HeadGradients, "add", lambda *arguments: calls.append(1))
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


# --- memory -------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """The most elements of a tensor that an operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, (tuple, list)) else (found,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return found


@pytest.mark.parametrize("mode", MODES)
def test_no_tensor_is_larger_than_a_chunk_or_the_weights(mode):
    chunk_tokens, width = 2, 200
    on = inputs(width=width)
    with Largest() as seen:
        by_chunks(on, config(mode), chunk_tokens)
    assert seen.elements <= max(chunk_tokens * (width + 1), width * HIDDEN)
    with Largest() as seen:
        plainly(on, config(mode))
    assert seen.elements >= ROWS * TOKENS * width


def test_chunks_fit_into_their_size(monkeypatch):
    monkeypatch.setattr(fused, "CHUNK_BYTES", 2**20)
    for width, dtype in product((100, 1000, 2**20), (torch.float32, torch.float64)):
        tokens = fused.tokens_that_fit(width, dtype, config("topk_tail"), CPU)
        assert tokens == 1 or tokens * width * dtype.itemsize <= 2**20
        assert fused.tokens_that_fit(width, dtype, config("full_vocab"), CPU) <= tokens


# --- planted faults -----------------------------------------------------------------------------


def unnormalized(job, places, indices):
    parts = [logits for _, logits in fused.teacher_logits(job, places)]
    return torch.cat(parts, -1).gather(-1, indices)


def first_block_only(logits, head, temperature):
    return head.scale / temperature


FAULTS = {
    "teacher not normalized": (fused, "teacher_log_probs", unnormalized),
    "slope of the soft cap left out": (vocabulary, "slope", first_block_only),
    "blocks overlap": (fused, "blocks", lambda width, device: [slice(0, 16), slice(12, width)]),
    "mix left out": (fused, "trust_region_logits", lambda reference, live, mix: reference),
    "mean instead of shares": (
        fused,
        "aggregate",
        lambda values, mask, *, loss_agg_mode: (values * mask).sum() / mask.numel(),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_seen(name, monkeypatch):
    settings_ = config("topk_tail", teacher_regularization="trust-region", teacher_update_rate=0.3)
    on = inputs(softcap=2.0)
    assert distance(on, settings_) < EXACT
    monkeypatch.setattr(*FAULTS[name])
    assert distance(on, settings_) > 1e-3


# --- random cases -------------------------------------------------------------------------------


@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_random_cases_agree(data):
    on = inputs(softcap=data.draw(st.sampled_from([None, 3.0])))
    mask = st.lists(st.integers(0, 1), min_size=ROWS * TOKENS, max_size=ROWS * TOKENS)
    drawn = torch.tensor(data.draw(mask)).view(ROWS, TOKENS)
    on = replace(on, response_mask=drawn)
    if not (drawn * on.optional["self_distillation_mask"].unsqueeze(-1)).any():
        return
    settings_ = config(
        data.draw(st.sampled_from([*MODES])),
        alpha=data.draw(st.sampled_from([0.0, 0.5, 0.9, 1.0])),
        loss_agg_mode=data.draw(st.sampled_from(LOSS_AGG_MODES)),
        temperature=data.draw(st.sampled_from([1.0, 0.6])),
    )
    assert distance(on, settings_, chunk_tokens=data.draw(st.integers(1, 7))) < EXACT
