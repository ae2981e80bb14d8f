"""The settings of a process that code of others may change, put back afterwards."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def state_kept() -> Iterator[None]:
    """Put back what runs inside changes: torch's default dtype, threads and modes, the folder."""
    dtype, threads, grad = (
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
    )
    strict, warns = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    folder = os.open(".", os.O_RDONLY)
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        # as with threads, setting them is slow: it imports torch's compiler
        now = torch.are_deterministic_algorithms_enabled()
        if (now, torch.is_deterministic_algorithms_warn_only_enabled()) != (strict, warns):
            torch.use_deterministic_algorithms(strict, warn_only=warns)
        os.fchdir(folder)
        os.close(folder)
