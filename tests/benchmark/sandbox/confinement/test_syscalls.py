"""The table of system calls has the kernel's numbers and none that reach beyond the process."""

import pytest

from sdpo.benchmark.sandbox.confinement import syscalls

# Numbers on x86-64 and on aarch64.
_DANGEROUS = {
    "execve": (59, 221),
    "execveat": (322, 281),
    "fork": (57, None),
    "vfork": (58, None),
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "mount": (165, 40),
    "setuid": (105, 146),
    "setns": (308, 268),
    "unshare": (272, 97),
    "bpf": (321, 280),
    "io_uring_setup": (425, 425),
    "keyctl": (250, 219),
    "memfd_create": (319, 279),
    "pidfd_open": (434, 434),
}


@pytest.mark.parametrize(("column", "machine"), [(0, "x86_64"), (1, "aarch64")])
def test_no_table_holds_a_dangerous_call(column: int, machine: str) -> None:
    for table in (syscalls.allowed, syscalls.server, syscalls.conditional):
        numbers = set(table(machine).values())
        for name, known in _DANGEROUS.items():
            assert name not in table(machine)
            assert known[column] not in numbers, name


@pytest.mark.parametrize("machine", sorted(syscalls.ARCHITECTURES))
def test_the_tables_do_not_overlap(machine: str) -> None:
    tables = syscalls.allowed(machine), syscalls.server(machine), syscalls.conditional(machine)
    numbers = [number for table in tables for number in table.values()]
    assert len(numbers) == len(set(numbers))
    assert max(numbers) <= syscalls.NEWEST


def test_numbers_differ_by_architecture() -> None:
    assert syscalls.allowed("x86_64")["read"] == 0
    assert syscalls.allowed("aarch64")["read"] == 63
    assert "open" in syscalls.allowed("x86_64")
    assert "open" not in syscalls.allowed("aarch64")
