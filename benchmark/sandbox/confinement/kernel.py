"""Calls the few functions of the C library and the kernel that the standard library lacks."""

import ctypes
import errno
import os
import sys
from collections.abc import Callable

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

PR_SET_PDEATHSIG = 1
PR_SET_SECCOMP = 22
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38

_M_ARENA_MAX = -8
_DETACH = 2
_CAPABILITIES_VERSION = 0x20080522


def machine() -> str:
    """Name of the processor architecture as in `uname -m`, or `""` off Linux."""
    return os.uname().machine if sys.platform == "linux" else ""


def prepared(function: str, *arguments: object) -> Callable[[], int]:
    """Prepare a call of a C function, for where each call must be fast.

    Args:
        function: Its name; it must return less than zero on failure.
        *arguments: Integers, bytes, `None` or ctypes objects.

    Returns:
        A function that makes the call, and raises `OSError` if it fails.

    Raises:
        OSError: If there is no Linux kernel.
    """
    if _libc is None:
        raise OSError(errno.ENOSYS, f"{function}: not a Linux system")
    called = _libc[function]
    converted = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]

    def call() -> int:
        result = called(*converted)
        if result < 0:
            code = ctypes.get_errno()
            raise OSError(code, f"{function}: {os.strerror(code)}")
        return result

    return call


def call(function: str, *arguments: object) -> int:
    """Call a C function, as described for `prepared`; raises `OSError` if it fails."""
    return prepared(function, *arguments)()


def prctl(option: int, value: int, pointer: object = 0) -> int:
    """Set an attribute of this process; raises `OSError` if refused."""
    return call("prctl", option, value, pointer, 0, 0)


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """Mount a file system; raises `OSError` if refused."""
    encoded = (source.encode(), os.fsencode(target), kind.encode())
    call("mount", *encoded, flags, options.encode())


def unmount(target: str) -> None:
    """Take a mount away, also while it is in use; raises `OSError` if refused."""
    call("umount2", os.fsencode(target), _DETACH)


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


def drop_capabilities() -> None:
    """Give up every capability of this process; raises `OSError` if refused."""
    header = _CapabilityHeader(_CAPABILITIES_VERSION, 0)
    call("capset", ctypes.byref(header), (ctypes.c_uint32 * 6)())


def limit_memory_arenas() -> None:
    """Keep glibc to two heaps: otherwise each thread reserves 64 MiB of address space."""
    if _libc is not None and hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_ARENA_MAX, 2)
