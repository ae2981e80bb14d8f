"""Builds a seccomp filter: an allow list of system calls, checked by the kernel.

A process under the filter can start threads but no process and no program, opens no socket, and
sends signals to itself only. Refused calls answer EPERM, so that Python raises `PermissionError`.

There are two programs, because a process's filter is compiled anew for each process, while an
inherited one costs nothing: the long allow list is installed in the fork server, which may also
start and end processes; each child adds a short one that takes this away.
"""

import ctypes
import re
import struct

from sdpo.benchmark.sandbox.confinement import kernel, syscalls

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _JUMP, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x05, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000

_CLONE_THREAD = 0x00010000
_FILTER_MODE = 2
# Naming a thread, and naming memory, which newer C libraries do for every allocation.
_PRCTL = (15, 16, 0x53564D41)
# TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX.
_IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
# Duplicate, flags, locks. Not F_SETOWN and F_SETSIG: they make the kernel signal other processes.
_FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 1030)

_Step = tuple[int, int, int, int]


def _argument(index: int) -> _Step:
    """Load the low half of an argument (both architectures are little-endian)."""
    return (_LOAD, 0, 0, _ARGUMENTS + 8 * index)


def _answer(value: int) -> _Step:
    return (_RETURN, 0, 0, value)


def _when(number: int, steps: list[_Step]) -> list[_Step]:
    """Run the steps, which must end in an answer, for one call only."""
    return [(_EQUAL, 0, len(steps), number), *steps]


def _one_of(argument: int, values: tuple[int, ...]) -> list[_Step]:
    steps = [_argument(argument)]
    for value in values:
        steps += [(_EQUAL, 0, 1, value), _answer(_ALLOW)]
    return [*steps, _answer(_ERROR | _EPERM)]


def _start(machine: str) -> list[_Step]:
    """Kill on calls of another architecture; leave the number of the call loaded.

    Raises:
        OSError: If there is no table for the architecture.
    """
    if machine not in syscalls.ARCHITECTURES:
        raise OSError(_ENOSYS, f"seccomp: no table of system calls for {machine!r}")
    steps = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, _AUDIT[machine]),
        _answer(_KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if machine == "x86_64":
        steps += [(_AT_LEAST, 0, 1, _X32_BIT), _answer(_KILL)]
    return steps


def _ranges(numbers: list[int]) -> list[tuple[int, int]]:
    """Join neighbouring numbers to ranges, both ends included."""
    ranges: list[tuple[int, int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return ranges


def _search(ranges: list[tuple[int, int]], refuse: list[_Step]) -> list[_Step]:
    """Search by halves: the kernel tries the filter on every number when it is installed."""
    if len(ranges) == 1:
        low, high = ranges[0]
        inside = [(_AT_LEAST, 0, 2, low), (_AT_LEAST, 1, 0, high + 1), _answer(_ALLOW)]
        return inside + refuse
    middle = len(ranges) // 2
    lower, upper = _search(ranges[:middle], refuse), _search(ranges[middle:], refuse)
    # A conditional jump spans 255 steps at most; an unconditional one any number.
    return [(_AT_LEAST, 0, 1, ranges[middle][0]), (_JUMP, 0, 0, len(lower)), *lower, *upper]


def server_program(machine: str) -> bytes:
    """Assemble the allow list for a fork server and, by inheritance, its children.

    Raises:
        OSError: If there is no table for the architecture.
    """
    steps = _start(machine)
    number = syscalls.conditional(machine)
    # The flags of clone3 lie in memory, where a filter cannot look: the C library takes clone.
    steps += [*_when(number.pop("clone3"), [_answer(_ERROR | _ENOSYS)])]
    refuse = [
        (_AT_LEAST, 0, 1, syscalls.NEWEST + 1),
        _answer(_ERROR | _ENOSYS),
        _answer(_ERROR | _EPERM),
    ]
    allowed = [syscalls.allowed(machine), syscalls.server(machine), number]
    numbers = sorted(value for table in allowed for value in table.values())
    return _assemble(steps + _search(_ranges(numbers), refuse))


def child_program(machine: str, process: int) -> bytes:
    """Assemble what a child adds.

    Args:
        machine: Architecture.
        process: Number of the child, as it sees itself.

    Raises:
        OSError: If there is no table for the architecture.
    """
    start = _start(machine)
    number = syscalls.conditional(machine)
    thread_only = [
        _argument(0),
        (_ANY_BIT, 0, 1, _CLONE_THREAD),
        _answer(_ALLOW),
        _answer(_ERROR | _EPERM),
    ]
    steps = [
        *start,
        *_when(number["clone"], thread_only),
        *_when(number["kill"], _one_of(0, (process,))),
        *_when(number["tgkill"], _one_of(0, (process,))),
        *_when(number["prlimit64"], _one_of(0, (0,))),
        *_when(number["prctl"], _one_of(0, _PRCTL)),
        *_when(number["ioctl"], _one_of(1, _IOCTL)),
        *_when(number["fcntl"], _one_of(1, _FCNTL)),
    ]
    for call in syscalls.server(machine).values():
        steps += _when(call, [_answer(_ERROR | _EPERM)])
    return _assemble([*steps, _answer(_ALLOW)])


def _assemble(steps: list[_Step]) -> bytes:
    return b"".join(struct.pack("HBBI", *step) for step in steps)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_void_p))


def _install(steps: bytes) -> None:
    copy = ctypes.create_string_buffer(steps, len(steps))
    loaded = _Program(len(steps) // struct.calcsize("HBBI"), ctypes.addressof(copy))
    kernel.prctl(kernel.PR_SET_SECCOMP, _FILTER_MODE, ctypes.byref(loaded))


def install_in_server(machine: str) -> None:
    """Put this process under the allow list for good; needs no_new_privs. Raises `OSError`."""
    _install(server_program(machine))


class ChildFilter:
    """Assembles the child's program once, and adapts it to each process."""

    # No process has this number; its bytes are replaced by the real one.
    _PLACEHOLDER = 0x7FFFFFFE

    def __init__(self, machine: str) -> None:
        steps = child_program(machine, self._PLACEHOLDER)
        mark = struct.pack("I", self._PLACEHOLDER)
        self._places = [match.start() for match in re.finditer(re.escape(mark), steps)]
        self._steps = ctypes.create_string_buffer(steps, len(steps))
        loaded = _Program(len(steps) // struct.calcsize("HBBI"), ctypes.addressof(self._steps))
        arguments = (kernel.PR_SET_SECCOMP, _FILTER_MODE, ctypes.byref(loaded), 0, 0)
        self._install = kernel.prepared("prctl", *arguments)

    def install(self, process: int) -> None:
        """Put this process, whose number it is, under both programs for good.

        Raises:
            OSError: If the kernel refuses.
        """
        for place in self._places:
            struct.pack_into("I", self._steps, place, process)
        self._install()
