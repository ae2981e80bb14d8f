"""Freed memory stays in the process while updates are repeated, and goes back afterwards."""

import subprocess
import sys

import pytest

from sdpo.runtime import malloc_trim

pytestmark = pytest.mark.usefixtures("packages_are_looked_up_once")

PROGRAM = """
import ctypes, resource
from sdpo.runtime import malloc_trim as allocator

library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
library.memset.argtypes = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
library.free.argtypes = (ctypes.c_void_p,)

def kept():
    blocks = [library.malloc(SIZE) for _ in range(25)]
    for block in blocks:
        library.memset(block, 1, SIZE)
    full = resident()
    for block in reversed(blocks):
        library.free(block)
    return 1 - (full - resident()) / (25 * SIZE)

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

SIZE = 8 * 2**20
kept()  # glibc raises its thresholds
usual = kept()
assert allocator.keep_freed_memory()
held = kept()
before = resident()
allocator.return_freed_memory()
print(usual, held, (before - resident()) / (25 * SIZE), kept())
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or malloc_trim.glibc() is None, reason="needs glibc"
)
def test_memory_is_kept_and_given_back():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    usual, held, returned, afterwards = map(float, done.stdout.split())
    assert usual < 0.2
    assert held > 0.9
    assert returned > 0.9
    assert afterwards < 0.4


def test_without_glibc_nothing_is_done(monkeypatch):
    monkeypatch.setattr(malloc_trim.ctypes, "CDLL", lambda name: object())
    assert not malloc_trim.keep_freed_memory()
    malloc_trim.return_freed_memory()
