"""Seeds, threads, dtype and kernels, set in one place and reported as set."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypedDict

import numpy as np
import torch


class DeterminismSettings(TypedDict):
    """What was set to fix everything that may move a result."""

    seed: int
    torch_num_threads: int
    default_dtype: str
    deterministic_algorithms: bool
    allow_tf32: bool


@contextmanager
def deterministic(seed: int = 0, threads: int = 1) -> Iterator[DeterminismSettings]:
    """Fix everything that may move a result, and put it back afterwards.

    Args:
        seed: for Python, NumPy and torch.
        threads: of torch; the order of a parallel sum depends on it.

    Yields:
        What was set, for the report.
    """
    before = (
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cuda.matmul.allow_tf32,
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    )
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float32)
    # on a CPU with one thread nothing is left to choose, and the switch imports torch's compiler
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cuda.matmul.allow_tf32 = False
    reseed(seed)
    try:
        yield {
            "seed": seed,
            "torch_num_threads": threads,
            "default_dtype": "float32",
            "deterministic_algorithms": on_gpu,
            "allow_tf32": False,
        }
    finally:
        torch.set_num_threads(before[0])
        torch.set_default_dtype(before[1])
        if on_gpu:
            torch.use_deterministic_algorithms(before[2], warn_only=before[3])
        torch.backends.cuda.matmul.allow_tf32 = before[4]
        if before[5] is None:
            os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def reseed(seed: int) -> None:
    """Set the global seeds of Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    if torch.cuda.is_available():
        torch.manual_seed(seed)
    else:
        # torch.manual_seed spends milliseconds on preparing for a device that may come later
        torch.default_generator.manual_seed(seed)
