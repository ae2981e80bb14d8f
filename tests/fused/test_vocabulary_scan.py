"""Passes over logits: exponentials that are taken as they are, and what is done where they can't.

A group has four entries here, a block sixteen.
"""

import pytest
import torch
from torch import Tensor

from sdpo.fused import token_log_probs, vocabulary_scan
from sdpo.fused.lm_head import Head, blocks
from sdpo.fused.vocabulary_scan import MODERATE, exponentials, scaled, sum_of_exponentials
from tests.helpers.fused_inputs import EXACT, config, distance, inputs, narrow_blocks

__all__ = ["narrow_blocks"]
TOKENS, WIDTH = 3, 43
FAR = 2 * MODERATE[1]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=random, dtype=torch.float64)


def by_columns(logits: Tensor) -> Tensor:
    return logits.T.contiguous().T


@pytest.mark.parametrize("layout", [torch.clone, by_columns])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("offset", [0.0, -FAR, FAR, -40 * FAR])
def test_exponentials_are_the_softmax_but_for_a_factor(layout, softcap, offset):
    head, temperature = Head(numbers(WIDTH, 2), None, 0.5, softcap), 0.7
    raw = (numbers(TOKENS, WIDTH) + torch.tensor([[0.0], [offset], [1.0]])).requires_grad_()
    z = raw * head.scale
    z = (z if softcap is None else softcap * torch.tanh(z / softcap)) / temperature
    wanted = z.logsumexp(-1, keepdim=True)
    (by_raw,) = torch.autograd.grad(wanted.sum(), raw)
    logits = layout(z.detach())
    found, factors = exponentials(logits, logits.amax(-1, keepdim=True), head, temperature)
    torch.testing.assert_close(found, wanted.detach(), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(factors * logits, by_raw, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("layout", [torch.clone, by_columns])
def test_moderate_logits_are_taken_as_they_are_and_others_relative_to_the_largest(layout):
    largest = torch.tensor([[MODERATE[0]], [MODERATE[1]], [FAR], [-FAR], [-torch.inf], [torch.nan]])
    reference = vocabulary_scan.reference_of(largest)
    assert reference.flatten().tolist() == [0.0, 0.0, FAR, -FAR, 0.0, 0.0]
    logits = layout(numbers(6, WIDTH) + reference)
    expected = (logits - reference).exp()
    total = sum_of_exponentials(logits, reference)
    assert torch.equal(logits, expected)
    torch.testing.assert_close(total, expected.sum(-1, keepdim=True))


@pytest.mark.parametrize("scale", [2.0, 0.0, 1e-38, 1e-9])
@pytest.mark.parametrize("entry", [0.0, 1.0, 1e25])
def test_a_scale_that_entries_cannot_be_divided_by(scale, entry):
    """In float32, where 1e25 / 1e-38 and what it would be multiplied with are not numbers."""
    values, scales = numbers(TOKENS, WIDTH).float(), torch.tensor([[1.0], [scale], [-1.0]])
    indices, by_entries = torch.tensor([[1, 2], [1, 1], [4, 5]]), torch.full((TOKENS, 2), entry)
    expected = values.double() * scales.double()
    expected.scatter_add_(-1, indices, by_entries.double())
    found, left = scaled(values.clone(), scales, indices, by_entries)
    assert found.abs().max() <= 1e35
    torch.testing.assert_close((found * left).double(), expected, rtol=1e-6, atol=1e-30)


def log_probs_of(logits: Tensor, indices: Tensor) -> tuple[Tensor, int]:
    """Through `entries_of`, and how often it asked for the logits."""
    asked = []

    def by_block():
        asked.append(1)
        for part in blocks(logits.shape[-1], logits.device):
            yield part, logits[:, part].clone()

    found = token_log_probs.entries_of(by_block, indices, logits.shape[-1], logits.dtype)
    return found, len(asked)


@pytest.mark.parametrize(
    ("first", "rest", "times"),
    [
        (0.0, 0.0, 1),
        (40.0, 0.0, 1),
        (0.0, 40.0, 1),
        (-100.0, -100.0, 1),
        (1000.0, 1000.0, 1),
        (0.0, 100.0, 2),  # beyond float32
        (-torch.inf, -95.0, 2),  # below what float32 keeps all digits of
        (-torch.inf, 0.0, 1),
    ],
)
def test_blocks_are_asked_for_again_where_the_first_says_too_little(first, rest, times):
    logits = numbers(TOKENS, WIDTH).float()
    logits[1, :16] += first
    logits[1, 16:] += rest
    indices = torch.tensor([[1, 20], [30, 42], [5, 17]])
    found, asked = log_probs_of(logits.clone(), indices)
    assert asked == times
    expected = logits.double().log_softmax(-1).gather(-1, indices)
    # the normalizer is rounded to float32 in its own size
    size = logits[logits.isfinite()].abs().max().item()
    atol = torch.finfo(torch.float32).eps * (size + 1)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=atol)


def test_a_token_without_any_number_is_no_number():
    logits = numbers(TOKENS, WIDTH)
    logits[1] = torch.nan
    found, asked = log_probs_of(logits, torch.tensor([[1, 20]] * TOKENS))
    assert found.isnan().any(-1).tolist() == [False, True, False]
    assert asked == 2


@pytest.mark.parametrize("chunk_tokens", [2, None])
@pytest.mark.parametrize("mode", ["topk_tail", "topk_renorm", "sampled"])
def test_logits_of_any_size(mode, chunk_tokens):
    on = inputs()
    assert on.student.head.bias is not None
    assert on.teacher.head.bias is not None
    on.student.head.bias.data += 40 * FAR
    on.teacher.head.bias.data[16:] += 40 * FAR
    assert distance(on, config(mode), chunk_tokens=chunk_tokens) < EXACT


@pytest.mark.parametrize("mode", ["topk_tail", "topk_renorm", "sampled"])
def test_a_token_whose_loss_weighs_nothing(mode):
    on = inputs()
    on.optional["rollout_is_weights"][0] = 0
    assert distance(on, config(mode)) < EXACT


# --- planted faults -----------------------------------------------------------------------------


def as_it_is(largest: Tensor) -> Tensor:
    return torch.zeros_like(largest)


FAULTS = {
    "no reference": (vocabulary_scan, "reference_of", as_it_is, test_logits_of_any_size),
    "trusted blindly": (token_log_probs, "within_reach", lambda *_: True, test_logits_of_any_size),
    "any scale divides": (vocabulary_scan, "FEW", -1.0, test_a_token_whose_loss_weighs_nothing),
}


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_seen(name, monkeypatch):
    owner, attribute, fault, check = FAULTS[name]
    rest = {"chunk_tokens": 2} if check is test_logits_of_any_size else {}
    monkeypatch.setattr(owner, attribute, fault)
    with pytest.raises(AssertionError):
        check("topk_tail", **rest)
