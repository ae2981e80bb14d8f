"""Has the kernel refuse file access outside some folders (Landlock), without privileges.

Landlock governs opening, creating, removing and renaming. It does not govern `stat`, `chdir`,
`chmod` and `chown`; the last two are refused by the seccomp filter.
"""

import ctypes
import os
import stat
from collections.abc import Callable

from sdpo.benchmark.sandbox.confinement import kernel

# The three calls have the same numbers on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG = 1
_PATH_BENEATH = 1

_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_TRUNCATE, _IOCTL_DEVICE = 1 << 14, 1 << 15
# Rights that a rule for a single file may carry.
_FILE_RIGHTS = 1 | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEVICE
# In the writable folder: everything but executing and making device nodes and sockets.
_NEVER = 1 | 1 << 6 | 1 << 9 | 1 << 11 | _IOCTL_DEVICE

# Bits known to each version of the interface: file system, network, scope.
_FILE_SYSTEM_BITS = {1: 13, 2: 14, 3: 15, 4: 15}
_FIRST_WITH_NETWORK, _FIRST_WITH_SCOPE = 4, 6


class _Ruleset(ctypes.Structure):
    _fields_ = (
        ("file_system", ctypes.c_uint64),
        ("network", ctypes.c_uint64),
        ("scope", ctypes.c_uint64),
    )


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


def version() -> int:
    """Version of the kernel's Landlock interface; raises `OSError` where there is none."""
    return kernel.call("syscall", _CREATE_RULESET, None, 0, _VERSION_FLAG)


def ruleset(read: list[str], write: list[str]) -> int:
    """Make a rule set.

    Args:
        read: Files and folders that may be read; missing ones are left out.
        write: Files and folders that may be read and written.

    Returns:
        A file descriptor for `restrict`.

    Raises:
        OSError: If the kernel has no Landlock or refuses.
    """
    abi = version()
    everything = (1 << _FILE_SYSTEM_BITS.get(abi, 16)) - 1
    rules = _Ruleset(everything, 3 if abi >= _FIRST_WITH_NETWORK else 0, 3)
    size = 24 if abi >= _FIRST_WITH_SCOPE else 16 if abi >= _FIRST_WITH_NETWORK else 8
    number = kernel.call("syscall", _CREATE_RULESET, ctypes.byref(rules), size, 0)
    for path in read:
        if os.path.exists(path):
            _allow(number, path, (_READ_FILE | _READ_DIR) & everything)
    for path in write:
        _allow(number, path, everything & ~_NEVER)
    return number


def _allow(number: int, path: str, rights: int) -> None:
    folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(folder).st_mode):
            rights &= _FILE_RIGHTS
        rule = _PathBeneath(rights, folder)
        kernel.call("syscall", _ADD_RULE, number, _PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(folder)


def restriction(number: int) -> Callable[[], int]:
    """Make the call that puts the calling process under the rule set; needs no_new_privs."""
    return kernel.prepared("syscall", _RESTRICT_SELF, number, 0)
