"""What becomes of freed memory: kept for the next update, which takes as much again.

glibc gives memory back to the system once enough of it is free. To find and clear the pages anew
was an eighth of a check of a model of 0.1 B weights on a CPU.
"""

import ctypes
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameters of `mallopt`, from glibc's `malloc.h`."""

_LARGE_BLOCK = 32 * 2**20
"""Larger blocks go back at once; glibc itself raises the limit up to this number of bytes."""


def keep_freed_memory() -> bool:
    """Keep what is freed, but for large blocks; False where the C library is not glibc."""
    return _set_thresholds(-1)  # never


def return_freed_memory() -> None:
    """Give what is free back to the system, now and from now on."""
    if _set_thresholds(2 * _LARGE_BLOCK):  # glibc's own ratio
        glibc().malloc_trim(0)


def _set_thresholds(trim: int) -> bool:
    """Set from how many free bytes on memory goes back; False where there is no such thing."""
    library = glibc()
    if library is None:
        return False
    limits = {_M_MMAP_THRESHOLD: _LARGE_BLOCK, _M_TRIM_THRESHOLD: trim}
    return all([library.mallopt(name, value) for name, value in limits.items()])


def glibc() -> Any:
    """The C library, if it is glibc."""
    try:
        library = ctypes.CDLL(None)
    except TypeError:  # Windows has no library without a name
        return None
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
