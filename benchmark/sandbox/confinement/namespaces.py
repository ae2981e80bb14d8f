"""Enters namespaces: no other processes, no network and a read-only file system.

They are entered once per fork server; the runs inside cost nothing more. Where the kernel refuses
them (often inside containers) the server goes on without and reports so.
"""

import ctypes
import os

from sdpo.benchmark.sandbox.confinement import kernel

_FLAGS = {
    "user-namespace": 0x10000000,
    "pid-namespace": 0x20000000,
    "network-namespace": 0x40000000,
    "mount-namespace": 0x00020000,
    "ipc-namespace": 0x08000000,
    "uts-namespace": 0x04000000,
}
_PRIVATE_RECURSIVE = 1 << 18 | 1 << 14
_NOSUID_NODEV_NOEXEC = 2 | 4 | 8
_MOUNT_SETATTR = 442
_READ_ONLY, _RECURSIVE, _HERE = 1, 0x8000, -100


def enter() -> list[str]:
    """Leave the present namespaces; the caller's next child is process 1 of the new ones.

    Returns:
        Names of the namespaces entered; empty where the kernel refuses.
    """
    uid, gid = os.geteuid(), os.getegid()
    for names in (list(_FLAGS), [n for n in _FLAGS if n != "user-namespace"]):
        try:
            kernel.call("unshare", sum(_FLAGS[name] for name in names))
        except OSError:
            continue
        if "user-namespace" in names:
            _map_user(uid, gid)
        return names
    return []


def _map_user(uid: int, gid: int) -> None:
    """Keep the user's own number, so that its files stay readable; no other user exists."""
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {uid} 1"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


class _MountAttributes(ctypes.Structure):
    _fields_ = (
        ("set", ctypes.c_uint64),
        ("clear", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("namespace", ctypes.c_uint64),
    )


def seal_file_system(scratch: str, megabytes: int) -> list[str]:
    """Make every mount read-only, and the scratch folder a memory disk of bounded size.

    Must run inside the new mount namespace. Nothing of it is visible outside.

    Returns:
        Names of what took effect.
    """
    done = []
    try:
        kernel.mount("none", "/", "", _PRIVATE_RECURSIVE)
        attributes = _MountAttributes(_READ_ONLY, 0, 0, 0)
        arguments = (_HERE, b"/", _RECURSIVE, ctypes.byref(attributes), ctypes.sizeof(attributes))
        kernel.call("syscall", _MOUNT_SETATTR, *arguments)
        done.append("read-only-root")
    except OSError:
        # An older kernel; Landlock and the filter still protect what lies outside.
        pass
    try:
        options = f"size={megabytes}m,nr_inodes=4096,mode=700"
        kernel.mount("tmpfs", scratch, "tmpfs", _NOSUID_NODEV_NOEXEC, options)
        done.append("memory-scratch")
    except OSError:
        pass
    return done
