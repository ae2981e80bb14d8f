"""The fused loss holds little, its faults are seen, and random cases agree."""

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sdpo.fused import chunks, fused_loss, lm_head, vocabulary_scan
from sdpo.fused.lm_head import Head, Projection
from sdpo.settings.rules import LOSS_AGG_MODES
from tests.helpers.fused_inputs import (
    EXACT,
    HIDDEN,
    MODES,
    ROWS,
    TOKENS,
    by_chunks,
    config,
    distance,
    inputs,
    narrow_blocks,
    plainly,
)

__all__ = ["narrow_blocks"]

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


def test_no_tensor_is_larger_than_the_weights_where_the_gradient_holds_logits(monkeypatch):
    width = 200
    on = inputs(width=width)
    on = replace(on, response_mask=torch.ones_like(on.response_mask))
    on.optional["self_distillation_mask"].fill_(1)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 2 * width * torch.float64.itemsize)
    with Largest() as seen:
        by_chunks(on, config("topk_tail"), None)
    assert seen.elements <= width * (HIDDEN + 2)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", ROWS * TOKENS * width * torch.float64.itemsize)
    with Largest() as seen:
        by_chunks(on, config("topk_tail"), None)
    assert seen.elements >= ROWS * TOKENS * width


def loss_inputs(mode: str, width: int, count: int = 0, hidden: int = 2) -> chunks.LossInputs:
    """Inputs in float32 of which `count` tokens count."""
    side = Projection(torch.zeros(count, hidden), Head(torch.zeros(width, hidden)))
    return chunks.LossInputs(
        student=side, teacher=side, live=None, responses=torch.zeros(count, dtype=torch.long),
        old_log_probs=None, rollout_is_weights=None, loss_mask=torch.ones(1, count),
        config=config(mode), dtype=torch.float32, chunk_tokens=None, traces=None,
        needs_gradient=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("mode", "width", "tokens"),
    [("topk_tail", 100, 16), ("topk_tail", 1601, 1), ("full_vocab", 100, 1), ("full_vocab", 8, 12)],
)
def test_a_chunk_has_the_tokens_whose_logits_fit_into_its_bytes(mode, width, tokens, monkeypatch):
    """6,400 bytes hold 1,600 numbers: 16 rows of 100, or 16 copies of a row."""
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 6400)
    assert loss_inputs(mode, width).tokens_per_chunk == tokens


def test_tokens_beyond_a_chunk_are_shared_out_evenly(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 4 * 100 * 3)
    sizes = [len(chunk.positions) for chunk in loss_inputs("topk_tail", 100, 7).chunks(None)]
    assert sizes == [3, 2, 2]


# --- planted faults -----------------------------------------------------------------------------


def unnormalized(indices, blocks_of_logits):
    return torch.cat([logits for _, logits in blocks_of_logits], -1).gather(-1, indices)


def constant_slope(logits, head, temperature):
    return head.scale / temperature


FAULTS = {
    "teacher not normalized": (fused_loss, "log_probs_at", unnormalized),
    "slope of the soft cap left out": (vocabulary_scan, "logit_slope", constant_slope),
    "blocks overlap": (lm_head, "blocks", lambda width, *_: iter([slice(0, 16), slice(12, width)])),
    "mix left out": (fused_loss, "trust_region_logits", lambda reference, live, mix: reference),
    "mean instead of the mode's weights": (
        chunks,
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
    numbers = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32 - 1)))
    drawn = (torch.rand(ROWS, TOKENS, generator=numbers) < 0.6).long()
    on = replace(on, response_mask=drawn)
    assume((drawn * on.optional["self_distillation_mask"].unsqueeze(-1)).any())
    settings_ = config(
        data.draw(st.sampled_from([*MODES])),
        alpha=data.draw(st.sampled_from([0.0, 0.5, 0.9, 1.0])),
        loss_agg_mode=data.draw(st.sampled_from(LOSS_AGG_MODES)),
        temperature=data.draw(st.sampled_from([1.0, 0.6])),
    )
    assert distance(on, settings_, chunk_tokens=data.draw(st.integers(1, 7))) < EXACT
