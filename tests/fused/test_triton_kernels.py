"""The kernels in Triton's interpreter, on a CPU: `pip install triton`, then this file alone."""

import importlib.util
import sys

import pytest
import torch

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton"),
    # Triton decides while it is imported whether its own functions are interpreted
    pytest.mark.skipif("triton" in sys.modules, reason="Triton is imported already"),
]


@pytest.fixture
def kernels(monkeypatch):
    """`sdpo.fused.triton_kernels`, interpreted: Triton reads the variable while it decorates."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    found = importlib.util.find_spec("sdpo.fused.triton_kernels")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 5


@pytest.mark.parametrize("width", [1000, 4096, 9001])
def test_scan_is_logsumexp_and_group_maxima(kernels, width):
    logits = numbers(3, width)
    logits[0, :300] = -torch.inf
    groups = -(-width // 64)
    normalizers, maxima = torch.empty(3), torch.empty(3, groups)
    kernels.scan(logits, normalizers, maxima, 64)
    torch.testing.assert_close(normalizers, logits.logsumexp(-1), rtol=1e-6, atol=0)
    padded = torch.nn.functional.pad(logits, (0, groups * 64 - width), value=-torch.inf)
    assert torch.equal(maxima, padded.view(3, groups, 64).amax(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("softcap", [None, 30.0])
def test_softmax_gradient(kernels, softcap, dtype):
    logits, factors = numbers(3, 9001), numbers(3, 1, seed=1)
    normalizers = logits.logsumexp(-1, keepdim=True)
    found = kernels.softmax_gradient(logits, normalizers, factors, softcap, dtype)
    slope = 1.0 if softcap is None else 1 - (logits / softcap) ** 2
    expected = (logits - normalizers).exp() * factors * slope
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(found, expected.to(dtype), rtol=4 * eps, atol=1e-9)
