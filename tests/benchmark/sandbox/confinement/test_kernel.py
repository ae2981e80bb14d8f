"""Calls reach the kernel, and its refusals come back as errors."""

import errno
import os

import pytest

from sdpo.benchmark.sandbox.confinement import kernel
from tests.helpers.confined import needs_linux, printed_by

pytestmark = needs_linux


def test_a_call_returns_what_the_function_returns() -> None:
    assert kernel.call("getpid") == os.getpid()
    assert kernel.prepared("getppid")() == os.getppid()


def test_a_refused_call_raises_the_kernels_error() -> None:
    with pytest.raises(OSError, match="prctl: Invalid argument") as refused:
        kernel.prctl(99_999, 0)
    assert refused.value.errno == errno.EINVAL


def test_a_process_without_capabilities_has_none() -> None:
    code = """
    kernel.drop_capabilities()
    for line in open("/proc/self/status"):
        if line.startswith(("CapEff", "CapPrm")):
            print(line.split()[1])
    """
    assert printed_by(code) == ["0" * 16] * 2
