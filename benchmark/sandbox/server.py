"""The fork server: makes one confined process per request and leaves none behind.

    harness ── outer ── server (process 1 of its namespaces) ─┬─ submission process ◄── its calls
                                                              └─ tests process ◄── the test itself

The server never learns what its children are given: the harness passes it one end of a socket pair
for each, and talks to the child over the other end. Requests on the control socket, one datagram
each: `S` and `T` (start a submission's process, one for tests), with the CPU limit in seconds and a
descriptor; `E` (end: kill everything, empty the scratch folder, report); `Q` (quit).

Every module that is loaded here makes each fork slower, hence `_socket` instead of `socket`.
"""

import contextlib
import gc
import json
import os
import signal
import sys
from _socket import CMSG_SPACE, socket
from collections.abc import Callable

from sdpo.benchmark.sandbox import cleanup, submission_process, tests_process
from sdpo.benchmark.sandbox.confinement import confine, kernel, namespaces
from sdpo.benchmark.sandbox.wire import ENDED, Pipe

# Modules that submissions use often; loaded once instead of in every run.
_PRELOADED = (
    *("bisect", "cmath", "collections", "copy", "functools", "heapq", "itertools", "math"),
    *("operator", "random", "re", "string", "time", "typing"),
)
_CONTROL, _CHANNEL = 3, 4
_WATCH_SECONDS = 1.0


def main(settings: dict) -> None:
    """Run as the outer process: enter namespaces, start the server, outlive it by nothing.

    Args:
        settings: `control` (descriptor of the control socket), `scratch` (folder), `memory`,
            `file_size`, `scratch_size` (MiB), `disabled` (layers).
    """
    parent = os.getppid()
    if settings["control"] != _CONTROL:
        os.dup2(settings["control"], _CONTROL)
        os.close(settings["control"])
    # Opened before the file system becomes read-only here: the scratch folder must go in the end.
    above = os.open(os.path.dirname(settings["scratch"]), os.O_RDONLY | os.O_DIRECTORY)
    disabled = frozenset(settings["disabled"])
    layers = [] if "namespaces" in disabled else namespaces.enter()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    child = os.fork()
    if child == 0:
        os._exit(0 if _serve(settings, layers, disabled) else 1)
    os.close(_CONTROL)
    if _watch(child, parent) != 0:
        _remove_scratch(settings["scratch"], above, "mount-namespace" in layers)
    os._exit(0)


def _watch(child: int, parent: int) -> int:
    """Wait for the server's end, and return its status; if the harness dies first, end it."""
    while True:
        signal.sigtimedwait([signal.SIGCHLD], _WATCH_SECONDS)
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        if os.getppid() != parent:
            os.kill(child, signal.SIGKILL)


def _remove_scratch(scratch: str, above: int, mounted: bool) -> None:
    """Do what the harness would have done."""
    if mounted:
        with contextlib.suppress(OSError):
            # There is nothing to unmount where the kernel refused the memory disk.
            kernel.unmount(scratch)
    else:
        cleanup.empty_folder(scratch)
    # The harness may have removed it before it died.
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(os.path.basename(scratch), dir_fd=above)


def _serve(settings: dict, layers: list[str], disabled: frozenset[str]) -> bool:
    """Serve; returns whether the harness asked for the end."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
    if sys.platform == "linux":
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    own_processes = "pid-namespace" in layers
    if "mount-namespace" in layers:
        layers = layers + namespaces.seal_file_system(settings["scratch"], settings["scratch_size"])
    os.chdir(settings["scratch"])
    _preload()
    confinement = confine.Confinement(layers, disabled)
    confinement.prepare(settings["scratch"], settings["memory"], settings["file_size"])
    os.environ.clear()
    submission_process.rehearse()
    gc.disable()
    gc.collect()
    gc.freeze()
    control = socket(fileno=_CONTROL)
    control.send(json.dumps({"layers": confinement.layers}).encode())
    return _Server(control, confinement, own_processes).loop()


def _preload() -> None:
    # `random` would draw a seed from the kernel in every child, only for `submission_process` to
    # replace it. So no module here may import it before.
    register, os.register_at_fork = os.register_at_fork, lambda **hooks: None
    try:
        for name in _PRELOADED:
            __import__(name)
    finally:
        os.register_at_fork = register


class _Server:
    def __init__(
        self, control: socket, confinement: confine.Confinement, own_processes: bool
    ) -> None:
        self._control = control
        self._confinement = confinement
        self._own_processes = own_processes
        self._children: set[int] = set()
        self._problem = b""

    def loop(self) -> bool:
        """Serve until the harness asks for the end (true) or is gone (false)."""
        while True:
            message, extra, _, _ = self._control.recvmsg(64, CMSG_SPACE(4))
            if message in (b"", b"Q"):
                self._kill_all()
                return message == b"Q"
            if message[:1] == b"E":
                self._control.send(self._end())
            else:
                work = submission_process.run if message[:1] == b"S" else tests_process.run
                descriptor = int.from_bytes(extra[0][2][:4], sys.byteorder)
                self._start(work, int(message[1:]), descriptor)

    def _start(self, work: Callable[[Pipe], None], cpu_seconds: int, descriptor: int) -> None:
        try:
            child = os.fork()
        except OSError as error:
            self._problem = f"fork: {error.strerror}".encode()
        else:
            if child == 0:
                _child(work, cpu_seconds, descriptor, self._confinement)
            self._children.add(child)
        os.close(descriptor)

    def _end(self) -> bytes:
        self._kill_all()
        cleanup.empty_folder(".")
        answer, self._problem = self._problem or ENDED, b""
        return answer

    def _kill_all(self) -> None:
        """Kill every process of this server, and wait until none is left."""
        if self._own_processes:
            _signal_everything()
        else:
            for child in self._children:
                os.kill(child, signal.SIGKILL)
        # The filter lets no child start a process; without it, there may be any number.
        only_children = "seccomp" in self._confinement.layers
        while self._children or not only_children:
            if not only_children and not self._own_processes:
                cleanup.kill_descendants()
            try:
                self._children.discard(os.wait()[0])
            except ChildProcessError:
                break
        self._children.clear()


def _signal_everything() -> None:
    try:
        # As process 1 of a namespace of processes: everything in it but the caller.
        os.kill(-1, signal.SIGKILL)
    except ProcessLookupError:
        return


def _child(
    work: Callable[[Pipe], None],
    cpu_seconds: int,
    descriptor: int,
    confinement: confine.Confinement,
) -> None:
    """Confine this process and do the work; never returns."""
    status = 1
    try:
        confinement.apply(cpu_seconds)
        os.dup2(descriptor, _CHANNEL)
        os.close(_CONTROL)
        os.closerange(_CHANNEL + 1, 1 << 16)
        gc.enable()
        work(Pipe(_CHANNEL))
        status = 0
    finally:
        os._exit(status)
