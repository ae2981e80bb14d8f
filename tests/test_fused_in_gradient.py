"""Logits that lie where the head's gradient will be: the chunk that needs no memory of its own."""

from dataclasses import replace

import pytest
import torch
from fused_inputs import (
    EXACT,
    HIDDEN,
    MODES,
    ROWS,
    WIDTH,
    by_chunks,
    config,
    distance,
    inputs,
    narrow_blocks,
)
from torch.utils._python_dispatch import TorchDispatchMode

from sdpo import fused_job, heads
from sdpo.heads import Head

__all__ = ["narrow_blocks"]
BY_SUPPORT = [mode for mode in MODES if mode != "full_vocab"]


def more_tokens_than_columns():
    """Nine tokens that count, six columns of the head's gradient."""
    on = inputs()
    return replace(on, optional=on.optional | {"self_distillation_mask": torch.ones(ROWS)})


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Two tokens fit into a chunk with memory of its own, four in float32."""
    monkeypatch.setattr(fused_job, "CHUNK_BYTES", 2 * WIDTH * torch.float64.itemsize)


@pytest.fixture
def chunks(monkeypatch):
    """The chunks that were computed."""
    seen, made = [], fused_job.Job.chunks

    def chunks(job, by_weight):
        for chunk in made(job, by_weight):
            seen.append(chunk)
            yield chunk

    monkeypatch.setattr(fused_job.Job, "chunks", chunks)
    return seen


@pytest.mark.parametrize("mode", BY_SUPPORT)
@pytest.mark.parametrize("on", [inputs(), more_tokens_than_columns()], ids=["fewer", "more"])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_loss_and_gradients_are_those_of_the_logits(mode, on, softcap, chunks):
    head = on.student.head._replace(softcap=softcap)
    teacher = on.teacher._replace(head=on.teacher.head._replace(softcap=softcap))
    on = replace(on, student=on.student._replace(head=head), teacher=teacher)
    settings_ = config(mode, temperature=0.7)
    assert distance(on, settings_, chunk_tokens=None) < EXACT
    sizes = [(len(chunk.places), chunk.room is not None) for chunk in chunks]
    assert sizes == ([(5, True)] if on.optional["self_distillation_mask"].min() == 0 else
                     [(HIDDEN, True), (2, False), (1, False)])  # fmt: skip


def test_trust_region_mixes_the_logits():
    settings_ = config("topk_tail", teacher_regularization="trust-region", teacher_update_rate=0.3)
    assert distance(more_tokens_than_columns(), settings_, chunk_tokens=None) < EXACT


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("chunk_tokens", [2, None])
def test_what_the_memory_held_before_does_not_matter(mode, chunk_tokens, monkeypatch):
    monkeypatch.setattr(
        torch, "empty_like", lambda tensor, **rest: torch.full_like(tensor, torch.nan, **rest)
    )
    for on in (inputs(), more_tokens_than_columns()):
        assert distance(on, config(mode), chunk_tokens=chunk_tokens) < EXACT


@pytest.mark.parametrize("mode", MODES)
def test_without_any_token_the_gradient_is_zero(mode, monkeypatch):
    monkeypatch.setattr(torch, "empty_like", torch.ones_like)
    on = inputs()
    on.optional["self_distillation_mask"].zero_()
    loss, gradients = by_chunks(on, config(mode), None)
    assert loss == 0
    assert not any(gradient.any() for gradient in gradients)


def test_a_weight_that_lies_by_columns():
    on = more_tokens_than_columns()
    weight = on.student.head.weight.detach().T.contiguous().T.requires_grad_()
    on = replace(on, student=on.student._replace(head=on.student.head._replace(weight=weight)))
    assert distance(on, config("topk_tail"), chunk_tokens=None) < EXACT


def test_entries_that_the_bias_forbids():
    on = more_tokens_than_columns()
    for side in (on.student, on.teacher):
        assert side.head.bias is not None
        side.head.bias.data[20:] = -torch.inf
    for mode in ("topk_tail", "topk_renorm", "topk_above_width"):
        assert distance(on, config(mode), chunk_tokens=None) < EXACT


def in_dtype(dtype):
    """Numbers of bfloat16, in some dtype."""
    on = more_tokens_than_columns()
    student, teacher = (
        side._replace(
            hidden=side.hidden.detach().bfloat16().to(dtype).requires_grad_(),
            head=Head(side.head.weight.detach().bfloat16().to(dtype).requires_grad_()),
        )
        for side in (on.student, on.teacher)
    )
    return replace(on, student=student, teacher=teacher)


def test_half_precision_is_computed_in_float32(chunks):
    dtypes = torch.bfloat16, torch.float32
    found = [by_chunks(in_dtype(dtype), config("topk_tail"), None) for dtype in dtypes]
    assert [chunk.room is not None for chunk in chunks] == [True, False, True, False]
    assert torch.equal(found[0][0], found[1][0])
    for actual, expected in zip(found[0][1], found[1][1], strict=True):
        assert actual.dtype == torch.bfloat16
        # rounded once, by 2**-8 at most; a float32 head is multiplied at once, others in blocks
        torch.testing.assert_close(actual.float(), expected, rtol=2**-8, atol=1e-6)


def test_bits_are_stable():
    on = more_tokens_than_columns()
    first, second = (by_chunks(on, config("topk_tail"), None) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))


def test_a_frozen_head_lends_nothing(chunks):
    on = more_tokens_than_columns()
    expected = by_chunks(on, config("topk_tail"), None)[1][0]
    chunks.clear()
    on.student.head.weight.requires_grad_(False)
    found = by_chunks(on, config("topk_tail"), None)[1][0]
    assert (found - expected).abs().max() < EXACT * expected.abs().max()
    assert [chunk.room for chunk in chunks] == [None] * 5


def test_a_size_that_is_asked_for_holds_for_all_chunks(chunks):
    by_chunks(more_tokens_than_columns(), config("topk_tail"), 4)
    assert [(len(chunk.places), chunk.room) for chunk in chunks] == [(3, None)] * 3


@pytest.mark.parametrize("count", [2, 3])
def test_few_tokens_have_memory_of_their_own(count, chunks):
    on = inputs()
    mask = torch.arange(on.response_mask.numel()).view_as(on.response_mask) < count
    on = replace(on, response_mask=mask.long())
    on.optional["self_distillation_mask"].fill_(1)
    assert distance(on, config("topk_tail"), chunk_tokens=None) < EXACT
    assert [chunk.room is not None for chunk in chunks] == [count == 3]


def test_logits_take_columns_of_the_gradient():
    """Nothing of the logits' size is allocated."""
    by_weight = torch.zeros(WIDTH, HIDDEN, dtype=torch.float32)
    chunk = fused_job.in_gradient(torch.arange(4), by_weight)
    assert chunk.logits.shape == (4, WIDTH)
    assert chunk.room is not None
    assert chunk.room.shape == (heads.BLOCK, HIDDEN)
    chunk.logits.fill_(1)
    assert torch.equal(by_weight.sum(0), torch.tensor([WIDTH] * 4 + [0] * (HIDDEN - 4)).float())


# --- planted faults -----------------------------------------------------------------------------


def gradient_before_its_logits_are_read(self, projection, rows, grad, scale, room=None):
    part = slice(0, len(projection.head.weight))
    if room is not None and self.weight is not None:
        self.weight[part] = grad[:, part].T @ (scale * projection.hidden)
    self.hidden[rows] = scale * (grad @ projection.head.weight)


def without_zeros(self, by_weight):
    tokens = self.tokens
    yield fused_job.Chunk(tokens, torch.empty(len(tokens), WIDTH, dtype=self.dtype))


FAULTS = {
    "gradient written before its logits are read": (
        heads.HeadGradients, "add", gradient_before_its_logits_are_read, None,
    ),
    "gradient not set to zero where no logits lie": (fused_job.Job, "chunks", without_zeros, 9),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_seen(name, monkeypatch):
    owner, attribute, fault, chunk_tokens = FAULTS[name]
    on = inputs()
    assert distance(on, config("topk_tail"), chunk_tokens=chunk_tokens) < EXACT
    monkeypatch.setattr(owner, attribute, fault)
    monkeypatch.setattr(torch, "empty_like", torch.ones_like)
    assert distance(on, config("topk_tail"), chunk_tokens=chunk_tokens) > 1e-3


class OfWeightsSize(TorchDispatchMode):
    """The float32 memories as large as the weights that operations returned."""

    def __init__(self):
        super().__init__()
        self.found = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype == torch.float32:
            memory = result.untyped_storage()
            if memory.nbytes() >= WIDTH * HIDDEN * result.itemsize:
                self.found[memory.data_ptr()] = memory  # kept, so that no other takes its place
        return result


def test_a_head_in_half_precision_is_never_copied_whole(chunks, monkeypatch):
    monkeypatch.setattr(fused_job, "CHUNK_BYTES", WIDTH * torch.float32.itemsize)
    with OfWeightsSize() as seen:
        by_chunks(in_dtype(torch.bfloat16), config("topk_tail"), None)
    assert chunks[0].room is not None
    assert len(seen.found) == 1, "the gradient, and nothing else"
