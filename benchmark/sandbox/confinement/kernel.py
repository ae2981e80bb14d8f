"""Bindings to the few system calls that the standard library does not offer."""

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


def machine() -> str:
    """Name of the processor architecture as in `uname -m`, or `""` off Linux."""
    return os.uname().machine if sys.platform == "linux" else ""


def _check(result: int, name: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def syscall(name: str, number: int, *arguments: object) -> int:
    """Call the kernel by number.

    Args:
        name: Used in the error only.
        number: Number of the call on this architecture.
        *arguments: Integers, bytes, `None` or ctypes objects.

    Raises:
        OSError: If the call fails, or there is no Linux kernel.
    """
    if _libc is None:
        raise OSError(errno.ENOSYS, f"{name}: not a Linux system")
    converted = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _check(_libc.syscall(ctypes.c_long(number), *converted), name)


def prepared(name: str, *arguments: object) -> Callable[[], None]:
    """A call of a C function with its arguments converted already, for where each call counts.

    Args:
        name: Name of the function, which must return less than zero on failure.
        *arguments: As for `syscall`.

    Returns:
        A function that makes the call and raises `OSError` if it fails.

    Raises:
        OSError: If there is no Linux kernel.
    """
    if _libc is None:
        raise OSError(errno.ENOSYS, f"{name}: not a Linux system")
    function = _libc[name]
    converted = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]

    def call() -> None:
        if function(*converted) < 0:
            _check(-1, name)

    return call


def prctl(option: int, value: int, pointer: object = 0) -> int:
    """Call `prctl`; raises `OSError` if it fails or there is no Linux kernel."""
    if _libc is None:
        raise OSError(errno.ENOSYS, "prctl: not a Linux system")
    last = pointer if not isinstance(pointer, int) else ctypes.c_ulong(pointer)
    zero = ctypes.c_ulong(0)
    return _check(_libc.prctl(option, ctypes.c_ulong(value), last, zero, zero), "prctl")


def unshare(flags: int) -> None:
    """Move this process to new namespaces; raises `OSError` if refused."""
    if _libc is None:
        raise OSError(errno.ENOSYS, "unshare: not a Linux system")
    _check(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """Mount a file system; raises `OSError` if refused."""
    if _libc is None:
        raise OSError(errno.ENOSYS, "mount: not a Linux system")
    encoded = (source.encode(), os.fsencode(target), kind.encode())
    _check(_libc.mount(*encoded, ctypes.c_ulong(flags), options.encode()), f"mount {target}")


def unmount(target: str) -> None:
    """Take a mount away, also while it is in use; raises `OSError` if refused."""
    if _libc is None:
        raise OSError(errno.ENOSYS, "umount: not a Linux system")
    _check(_libc.umount2(os.fsencode(target), _DETACH), f"umount {target}")


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


def drop_capabilities() -> None:
    """Give up every capability of this process; raises `OSError` if refused."""
    if _libc is None:
        raise OSError(errno.ENOSYS, "capset: not a Linux system")
    header = _CapabilityHeader(0x20080522, 0)
    _check(_libc.capset(ctypes.byref(header), (ctypes.c_uint32 * 6)()), "capset")


def limit_memory_arenas() -> None:
    """Keep glibc to two heaps: otherwise each thread reserves 64 MiB of address space."""
    if _libc is not None and hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_ARENA_MAX, 2)
