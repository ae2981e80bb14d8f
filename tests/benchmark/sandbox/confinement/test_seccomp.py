"""The filter's programs answer for each system call as the tables say, here and in the kernel."""

import errno
import platform
import struct

import pytest

from sdpo.benchmark.sandbox.confinement import seccomp, syscalls
from tests.helpers.confined import needs_linux, printed_by

_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_REFUSED, _UNKNOWN = _ERROR | errno.EPERM, _ERROR | errno.ENOSYS
_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_OWN = 4321


def answer(program: bytes, machine: str, number: int, *arguments: int) -> int:
    """What the kernel would read from the program for a call: a small interpreter of it."""
    padded = (*arguments, *(0,) * (6 - len(arguments)))
    data = struct.pack("IIQ6Q", number, _AUDIT[machine], 0, *padded)
    steps = list(struct.iter_unpack("HBBI", program))
    at = loaded = 0
    while True:
        code, if_true, if_false, value = steps[at]
        at += 1
        if code == 0x06:
            return value
        if code == 0x20:
            (loaded,) = struct.unpack_from("I", data, value)
        elif code == 0x05:
            at += value
        else:
            holds = {0x15: loaded == value, 0x35: loaded >= value, 0x45: loaded & value}[code]
            at += if_true if holds else if_false


@pytest.mark.parametrize("machine", sorted(syscalls.ARCHITECTURES))
def test_the_server_may_make_the_calls_of_its_tables_and_no_other(machine: str) -> None:
    program = seccomp.server_program(machine)
    tables = [syscalls.allowed(machine), syscalls.server(machine), syscalls.conditional(machine)]
    allowed = {number for table in tables for number in table.values()}
    allowed.discard(syscalls.conditional(machine)["clone3"])
    for number in range(syscalls.NEWEST + 1):
        expected = _ALLOW if number in allowed else _REFUSED
        if number == syscalls.conditional(machine)["clone3"]:
            expected = _UNKNOWN
        assert answer(program, machine, number) == expected, number
    assert answer(program, machine, syscalls.NEWEST + 1) == _UNKNOWN


def test_calls_of_another_architecture_kill() -> None:
    for program in (seccomp.server_program("x86_64"), seccomp.child_program("x86_64", _OWN)):
        assert answer(program, "aarch64", 0) == _KILL
        assert answer(program, "x86_64", 0x40000000) == _KILL
    with pytest.raises(OSError, match="no table of system calls for 'riscv64'"):
        seccomp.server_program("riscv64")


@pytest.mark.parametrize("machine", sorted(syscalls.ARCHITECTURES))
def test_a_childs_arguments_decide(machine: str) -> None:
    program, number = seccomp.child_program(machine, _OWN), syscalls.conditional(machine)
    thread, process = 0x00010000, 17
    assert answer(program, machine, number["clone"], thread) == _ALLOW
    assert answer(program, machine, number["clone"], process) == _REFUSED
    for call, own, others in (("kill", _OWN, 1), ("tgkill", _OWN, 1), ("prlimit64", 0, 1)):
        assert answer(program, machine, number[call], own) == _ALLOW
        assert answer(program, machine, number[call], others) == _REFUSED
    assert answer(program, machine, number["fcntl"], 0, 3) == _ALLOW
    assert answer(program, machine, number["fcntl"], 0, 8) == _REFUSED
    for call in syscalls.server(machine).values():
        assert answer(program, machine, call) == _REFUSED


@needs_linux
@pytest.mark.skipif(
    platform.machine() not in syscalls.ARCHITECTURES, reason="no table for this architecture"
)
def test_the_kernel_holds_a_process_to_both_programs() -> None:
    code = """
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    child = seccomp.ChildFilter(kernel.machine())
    seccomp.install_in_server(kernel.machine())
    if os.fork() == 0:
        child.install(os.getpid())
        print("fork", tried(os.fork))
        print("socket", tried(socket.socket))
        print("pair", tried(socket.socketpair))
        print("signal", tried(os.kill, os.getpid(), 0), tried(os.kill, os.getppid(), 0))
        print("execute", tried(os.execv, "/bin/true", ["true"]), flush=True)
        thread = threading.Thread(target=print, args=("thread",))
        thread.start()
        thread.join()
        os._exit(0)
    os.wait()
    """
    assert printed_by(code) == [
        "fork PermissionError",
        "socket PermissionError",
        "pair done",
        "signal done PermissionError",
        "execute PermissionError",
        "thread",
    ]
