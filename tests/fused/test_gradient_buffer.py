"""Logits that lie where the head's gradient will be: the chunk that needs no memory of its own."""

import mmap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sdpo.fused import chunks as chunks_module
from sdpo.fused import gradient_buffer, lm_head
from sdpo.fused.fused_loss import fused_self_distillation_loss
from sdpo.fused.gradient_buffer import GradientBuffer, gradient_ends_before_logits
from sdpo.fused.lm_head import Head, Projection
from tests.helpers.fused_inputs import (
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
    plainly,
)

__all__ = ["narrow_blocks"]
BY_SUPPORT = [mode for mode in MODES if mode != "full_vocab"]


def more_tokens_than_columns():
    """Nine tokens that count, six columns of the head's gradient."""
    on = inputs()
    return replace(on, optional=on.optional | {"self_distillation_mask": torch.ones(ROWS)})


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Two tokens fit into a chunk with memory of its own, four in float32."""
    monkeypatch.setattr(chunks_module, "CHUNK_BYTES", 2 * WIDTH * torch.float64.itemsize)


@pytest.fixture
def chunks(monkeypatch):
    """The chunks that were computed."""
    seen, made = [], chunks_module.LossInputs.chunks

    def chunks(job, by_weight):
        for chunk in made(job, by_weight):
            seen.append(chunk)
            yield chunk

    monkeypatch.setattr(chunks_module.LossInputs, "chunks", chunks)
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
    sizes = [(len(chunk.positions), chunk.scratch is not None) for chunk in chunks]
    assert sizes == ([(5, True)] if on.optional["self_distillation_mask"].min() == 0 else
                     [(HIDDEN + 2, True), (1, False)])  # fmt: skip


def test_trust_region_mixes_the_logits():
    settings_ = config("topk_tail", teacher_regularization="trust-region", teacher_update_rate=0.3)
    assert distance(more_tokens_than_columns(), settings_, chunk_tokens=None) < EXACT


def filled(monkeypatch, value):
    """Memory for gradients that holds some value at first."""
    made = gradient_buffer.GradientBuffer.__init__

    def make(self, *arguments):
        made(self, *arguments)
        self.logit_columns.fill_(value)

    monkeypatch.setattr(gradient_buffer.GradientBuffer, "__init__", make)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("chunk_tokens", [2, None])
def test_what_the_memory_held_before_does_not_matter(mode, chunk_tokens, monkeypatch):
    filled(monkeypatch, torch.nan)
    for on in (inputs(), more_tokens_than_columns()):
        assert distance(on, config(mode), chunk_tokens=chunk_tokens) < EXACT


@pytest.mark.parametrize("mode", MODES)
def test_without_any_token_the_gradient_is_zero(mode, monkeypatch):
    filled(monkeypatch, 1.0)
    on = inputs()
    on.optional["self_distillation_mask"].zero_()
    loss, gradients = by_chunks(on, config(mode), None)
    assert loss == 0
    assert not any(gradient.any() for gradient in gradients)


# --- more tokens than the gradient has columns --------------------------------------------------


def test_further_tokens_lie_behind_the_gradient(chunks):
    by_chunks(more_tokens_than_columns(), config("topk_tail"), None)
    first, second = chunks
    assert first.logits.data_ptr() + WIDTH * HIDDEN * 8 == second.logits.data_ptr()


@pytest.fixture
def overwritten(monkeypatch):
    """Of the blocks of the gradient that were written, whether they were directly."""
    seen = []

    def gradient_ends_before_logits(*arguments):
        seen.append(gradient_buffer.gradient_ends_before_logits(*arguments))
        return seen[-1]

    monkeypatch.setattr(lm_head, "gradient_ends_before_logits", gradient_ends_before_logits)
    return seen


@pytest.mark.parametrize("mode", BY_SUPPORT)
def test_blocks_whose_logits_lie_behind_are_written_directly(mode, overwritten, monkeypatch):
    monkeypatch.setattr(lm_head, "BLOCK", 4)
    assert distance(more_tokens_than_columns(), config(mode), chunk_tokens=None) < EXACT
    assert overwritten == sorted(overwritten)
    assert 0 < sum(overwritten) < len(overwritten)
    overwritten.clear()
    assert distance(inputs(), config(mode), chunk_tokens=None) < EXACT
    assert not any(overwritten)


def last_row_first(one, other, *, out):
    """A product that writes before it has read all of its input, as not every kernel does."""
    for row in reversed(range(len(one))):
        out[row] = one[row] @ other
    return out


@pytest.mark.parametrize(
    ("check", "exact"), [(gradient_ends_before_logits, True), (lambda *_: True, False)]
)
def test_a_gradient_over_its_own_logits_is_made_elsewhere(check, exact, monkeypatch):
    """Whatever the order in which a product reads and writes."""
    monkeypatch.setattr(torch, "mm", last_row_first)
    monkeypatch.setattr(lm_head, "BLOCK", 2048)
    monkeypatch.setattr(lm_head, "gradient_ends_before_logits", check)
    tokens, hidden, width = 200, 160, 3 * 2048
    buffer = GradientBuffer((width, hidden), tokens, torch.float32, torch.device("cpu"))
    side = Projection(torch.randn(tokens, hidden), Head(torch.randn(width, hidden)))
    chunk = chunks_module.chunk_in_buffer(torch.arange(tokens), buffer.logit_columns)
    chunk.logits.copy_(torch.randn(tokens, width))
    expected = chunk.logits.T.double() @ side.hidden.double()
    sums = lm_head.HeadGradients(None, buffer.gradient, None)
    sums.add(side, chunk.positions, chunk.logits, chunk.scratch)
    error = (buffer.gradient - expected).abs().max() / expected.abs().max()
    assert (error < 1e-5) == exact


def test_where_nothing_can_be_given_back_the_gradient_has_its_own_size(chunks, monkeypatch):
    monkeypatch.setattr(chunks_module, "CAN_RELEASE_PAGES", False)
    assert distance(more_tokens_than_columns(), config("topk_tail"), chunk_tokens=None) < EXACT
    sizes = [(len(chunk.positions), chunk.scratch is not None) for chunk in chunks]
    assert sizes == [(HIDDEN, True), (2, False), (1, False)]


@pytest.mark.skipif(not gradient_buffer.CAN_RELEASE_PAGES, reason="the system takes nothing back")
def test_what_lies_beyond_the_gradient_is_given_back():
    height, width, columns = 5000, 30, 40
    buffer = GradientBuffer((height, width), columns, torch.float32, torch.device("cpu"))
    buffer.logit_columns.fill_(1)
    before = resident()
    buffer.release_tail()
    beyond = height * (columns - width) * 4
    assert before - resident() > 0.9 * beyond
    assert (buffer.gradient == 1).all()
    assert not buffer.tail[mmap.PAGESIZE // 4 :].any()


@pytest.mark.skipif(not gradient_buffer.CAN_RELEASE_PAGES, reason="the system takes nothing back")
def test_the_loss_gives_back_what_it_does_not_need(monkeypatch):
    width, made = 3000, []
    monkeypatch.setattr(chunks_module, "CHUNK_BYTES", 2 * width * torch.float64.itemsize)
    monkeypatch.setattr(
        chunks_module,
        "GradientBuffer",
        lambda *arguments: made.append(GradientBuffer(*arguments)) or made[-1],
    )
    on = inputs(width=width)
    on.optional["self_distillation_mask"].fill_(1)
    by_chunks(on, config("topk_tail"), None)
    (buffer,) = made
    assert buffer.gradient.any()
    page = mmap.PAGESIZE // buffer.tail.itemsize
    assert len(buffer.tail) > 2 * page
    assert not buffer.tail[page:].any()


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def test_memory_of_the_gradients_size_is_kept():
    buffer = GradientBuffer((50, 30), 30, torch.float64, torch.device("cpu"))
    buffer.logit_columns.fill_(1)
    buffer.release_tail()
    assert (buffer.gradient == 1).all()
    assert not len(buffer.tail)


def test_gradients_add_up_in_what_is_left():
    on = more_tokens_than_columns()
    expected = plainly(on, config("topk_tail"))[1]
    for _ in range(2):
        loss = fused_self_distillation_loss(
            on.student, on.teacher, on.responses, on.response_mask, **on.optional,
            config=config("topk_tail"),
        )  # fmt: skip
        loss.backward()
    for leaf, once in zip(on.leaves, expected, strict=True):
        assert leaf.grad is not None
        torch.testing.assert_close(leaf.grad, 2 * once, rtol=1e-11, atol=1e-13)


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
    assert [chunk.scratch is not None for chunk in chunks] == [True, True]
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
    assert [chunk.scratch for chunk in chunks] == [None] * 5


def test_a_size_that_is_asked_for_holds_for_all_chunks(chunks):
    by_chunks(more_tokens_than_columns(), config("topk_tail"), 4)
    assert [(len(chunk.positions), chunk.scratch) for chunk in chunks] == [(3, None)] * 3


@pytest.mark.parametrize("count", [2, 3])
def test_few_tokens_have_memory_of_their_own(count, chunks):
    on = inputs()
    mask = torch.arange(on.response_mask.numel()).view_as(on.response_mask) < count
    on = replace(on, response_mask=mask.long())
    on.optional["self_distillation_mask"].fill_(1)
    assert distance(on, config("topk_tail"), chunk_tokens=None) < EXACT
    assert [chunk.scratch is not None for chunk in chunks] == [count == 3]


def test_logits_take_columns_of_the_gradient():
    """Nothing of the logits' size is allocated."""
    by_weight = torch.zeros(WIDTH, HIDDEN, dtype=torch.float32)
    chunk = chunks_module.chunk_in_buffer(torch.arange(4), by_weight)
    assert chunk.logits.shape == (4, WIDTH)
    assert chunk.scratch is not None
    assert chunk.scratch.shape == (lm_head.BLOCK, HIDDEN)
    chunk.logits.fill_(1)
    assert torch.equal(by_weight.sum(0), torch.tensor([WIDTH] * 4 + [0] * (HIDDEN - 4)).float())


# --- planted faults -----------------------------------------------------------------------------


def gradient_before_its_logits_are_read(self, projection, positions, by_logits, scratch=None):
    if scratch is not None:
        self.weight.copy_(by_logits.T @ projection.hidden)
    self.hidden[positions] = by_logits @ projection.head.weight


def without_zeros(self, buffer):
    logits = torch.empty(len(self.positions), WIDTH, dtype=self.dtype)
    yield chunks_module.Chunk(self.positions, logits)


FAULTS = {
    "gradient written before its logits are read": (
        lm_head.HeadGradients, "add", gradient_before_its_logits_are_read, None,
    ),
    "gradient not set to zero where no logits lie": (
        chunks_module.LossInputs, "chunks", without_zeros, 9,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_seen(name, monkeypatch):
    owner, attribute, fault, chunk_tokens = FAULTS[name]
    on = inputs()
    filled(monkeypatch, 1.0)
    assert distance(on, config("topk_tail"), chunk_tokens=chunk_tokens) < EXACT
    monkeypatch.setattr(owner, attribute, fault)
    assert not distance(on, config("topk_tail"), chunk_tokens=chunk_tokens) < 1e-3


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
    monkeypatch.setattr(chunks_module, "CHUNK_BYTES", WIDTH * torch.float32.itemsize)
    with OfWeightsSize() as seen:
        by_chunks(in_dtype(torch.bfloat16), config("topk_tail"), None)
    assert chunks[0].scratch is not None
    assert len(seen.found) == 1, "the gradient, and nothing else"
