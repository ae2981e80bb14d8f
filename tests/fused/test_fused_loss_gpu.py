"""The fused loss on a GPU: kernels against torch, precision against float64, chunks, memory.

`pytest -m gpu tests/fused/test_fused_loss_gpu.py`
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from sdpo.fused import vocabulary_scan
from sdpo.fused.fused_loss import fused_self_distillation_loss
from sdpo.fused.lm_head import Head, Projection
from sdpo.fused.vocabulary_scan import GROUP, logit_gradient, scan, top_indices
from sdpo.loss.self_distillation import self_distillation_loss
from sdpo.settings.config import SDPOConfig

WIDTH, HIDDEN, ROWS, TOKENS = 5003, 64, 4, 16
MODES: dict[str, dict[str, Any]] = {
    "topk_tail": {"distillation_topk": 20},
    "topk_renorm": {"distillation_topk": 20, "distillation_add_tail": False},
    "full_vocab": {"distillation_topk": None},
    "sampled": {"full_logit_distillation": False, "alpha": 1.0},
}


Sides = tuple[Projection, Projection]


def numbers(*shape: int, seed: int = 0, device: str = "cuda") -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=random, dtype=torch.float64).float().to(device)


def group_maxima(logits: Tensor) -> Tensor:
    """The largest logit of each group, by torch."""
    beyond = -logits.shape[-1] % GROUP
    padded = torch.nn.functional.pad(logits, (0, beyond), value=-torch.inf)
    return padded.unflatten(-1, (-1, GROUP)).amax(-1)


@pytest.mark.parametrize("width", [GROUP * 30, 5003])
def test_the_largest_logits_lie_in_the_groups_with_the_largest_maxima(width):
    logits = numbers(7, width, device="cpu")
    logits[0] = 1.0  # all equal
    found = top_indices(logits, group_maxima(logits), 20)
    assert torch.equal(logits.gather(-1, found), logits.topk(20, dim=-1).values)
    assert all(len(row.unique()) == 20 for row in found)
    other = group_maxima(logits).flip(-1)
    assert not torch.equal(
        logits.gather(-1, top_indices(logits, other, 20)), logits.topk(20).values
    )


@pytest.mark.gpu
@pytest.mark.parametrize("width", [1000, 4096, WIDTH])
def test_scan_is_logsumexp_and_group_maxima(width):
    logits = numbers(5, width) * 5
    logits[0, :300] = -torch.inf
    assert vocabulary_scan.has_kernels(logits)
    normalizers, maxima = scan(logits)
    assert maxima is not None
    assert torch.equal(maxima, group_maxima(logits))
    torch.testing.assert_close(normalizers, logits.logsumexp(-1, keepdim=True), rtol=1e-6, atol=0)
    strided = torch.cat([logits, logits], -1)[:, :width]
    assert torch.equal(scan(strided)[0], normalizers)


@pytest.mark.gpu
@pytest.mark.parametrize("softcap", [None, 30.0])
def test_the_kernels_gradient_is_what_torch_computes(softcap, monkeypatch):
    logits, by_normalizers = numbers(5, WIDTH), numbers(5, 1, seed=1)
    normalizers, maxima = scan(logits)
    indices = torch.cat([torch.full((5, 1), 7, device="cuda"), top_indices(logits, maxima, 20)], -1)
    indices[1, 0] = indices[1, 3]  # the response token is one of the likeliest
    by_entries = numbers(5, 21, seed=2)
    head = Head(numbers(WIDTH, HIDDEN), None, 0.5, softcap)
    rest = (by_normalizers, indices, logits.gather(-1, indices), by_entries, head, 0.7)
    found = logit_gradient(logits, normalizers, *rest)
    monkeypatch.setattr(vocabulary_scan, "triton_installed", lambda: False)
    expected = logit_gradient(logits.clone(), logits.logsumexp(-1, keepdim=True), *rest)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def sides(dtype: torch.dtype, weight_dtype: torch.dtype | None = None) -> Sides:
    """Student, with gradients, and teacher, under heads of their own."""
    found = []
    for seed in (1, 2):
        hidden = numbers(ROWS, TOKENS, HIDDEN, seed=seed).to(dtype)
        weight = (numbers(WIDTH, HIDDEN, seed=seed + 2) / 8).to(weight_dtype or dtype)
        found.append(Projection(hidden, Head(weight)))
    found[0].hidden.requires_grad_()
    found[0].head.weight.requires_grad_()
    return found[0], found[1]


def fused(student: Projection, teacher: Projection, mode: str, **settings: Any) -> list[Tensor]:
    """Loss, and gradients of hidden states and weight."""
    loss = fused_self_distillation_loss(student, teacher, **common(mode), **settings)
    return [loss, *torch.autograd.grad(loss, (student.hidden, student.head.weight))]


def common(mode: str, device: str = "cuda") -> dict[str, Any]:
    random = torch.Generator().manual_seed(5)
    mask = torch.ones(ROWS, TOKENS)
    mask[1, 9:] = 0
    return {
        "responses": torch.randint(0, WIDTH, (ROWS, TOKENS), generator=random).to(device),
        "response_mask": mask.to(device),
        "old_log_probs": numbers(ROWS, TOKENS, seed=6, device=device) - 8,
        "self_distillation_mask": torch.tensor([1.0, 1.0, 0.0, 1.0], device=device),
        "config": SDPOConfig(is_clip=2.0, temperature=0.9, **MODES[mode]),
    }


def exactly(student: Projection, teacher: Projection, mode: str) -> list[Tensor]:
    """The same from float64 logits on the CPU."""
    hidden, weight = (t.detach().cpu().double() for t in (student.hidden, student.head.weight))
    hidden, weight = hidden.requires_grad_(), weight.requires_grad_()
    theirs = teacher.hidden.cpu().double() @ teacher.head.weight.cpu().double().T
    loss = self_distillation_loss(hidden @ weight.T, theirs, **common(mode, "cpu"))
    return [loss, *torch.autograd.grad(loss, (hidden, weight))]


def distances(found: list[Tensor], expected: list[Tensor]) -> list[float]:
    pairs = zip(found, expected, strict=True)
    return [((f.detach().cpu().double() - e).norm() / e.norm()).item() for f, e in pairs]


@pytest.mark.gpu
@pytest.mark.parametrize("mode", MODES)
def test_float32_is_as_close_to_float64_as_rounding_allows(mode):
    on = sides(torch.float32)
    assert all(d < 1e-5 for d in distances(fused(*on, mode), exactly(*on, mode)))


@pytest.mark.gpu
@pytest.mark.parametrize("mode", MODES)
def test_bfloat16_is_as_close_as_its_roundoff(mode):
    """Half a unit of bfloat16 is 2^-9: of the derivative by logits, and of the result."""
    on = sides(torch.bfloat16)
    loss, by_hidden, by_weight = distances(fused(*on, mode), exactly(*on, mode))
    assert loss < 1e-5  # logits are float32
    assert by_hidden < 2**-8
    assert by_weight < 2**-8


@pytest.mark.gpu
def test_a_float32_head_is_rounded_to_half_precision_hidden_states():
    on = sides(torch.bfloat16, torch.float32)
    student, teacher = (p._replace(head=Head(p.head.weight.detach().bfloat16())) for p in on)
    rounded = student, teacher
    rounded[0].head.weight.requires_grad_()
    found, expected = fused(*on, "topk_tail"), fused(*rounded, "topk_tail")
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert found[2].dtype == torch.float32
    assert torch.equal(found[2].bfloat16(), expected[2])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_are_stable_for_one_chunk_size(dtype):
    on = sides(dtype)
    first, second = (fused(*on, "topk_tail", chunk_tokens=7) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.gpu
def test_memory_does_not_grow_with_the_tokens():
    weight = torch.randn(50_000, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    peaks = []
    for tokens in (4_000, 16_000):
        hidden = torch.randn(1, tokens, 128, device="cuda", dtype=torch.bfloat16)
        side = Projection(hidden, Head(weight))
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        fused_self_distillation_loss(
            side, side, torch.zeros(1, tokens, dtype=torch.long, device="cuda"),
            torch.ones(1, tokens, device="cuda"), config=SDPOConfig(is_clip=None),
            chunk_tokens=1000,
        ).backward()  # fmt: skip
        peaks.append(torch.cuda.max_memory_allocated() - before)
        weight.grad = None
    assert peaks[1] - peaks[0] < 0.05 * 16_000 * 50_000 * 2
