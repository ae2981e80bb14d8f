"""Starts a fork server and asks it for confined processes, on the harness's side."""

import contextlib
import dataclasses
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Literal

from sdpo.benchmark.sandbox.confinement.confine import CORE_LAYERS
from sdpo.benchmark.sandbox.peer import Peer
from sdpo.benchmark.sandbox.wire import ENDED

_PACKAGE = os.path.dirname(os.path.abspath(__file__))
_START_SECONDS = 60.0
_END_SECONDS = 30.0

# Makes the sandbox importable without running `sdpo`'s own start-up code or adding a search path.
_BOOTSTRAP = """
import json, sys, types
names = "sdpo", "sdpo.benchmark", "sdpo.benchmark.sandbox"
for name, path in zip(names, (None, None, sys.argv[1])):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [path] if path else []
from sdpo.benchmark.sandbox import server
server.main(json.loads(sys.argv[2]))
"""


class ServerError(RuntimeError):
    """A fork server did not start, or ended."""


class IsolationError(RuntimeError):
    """The machine lacks a layer of isolation that was required."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of one confined process.

    `memory`: address space, MiB. `file_size`: largest file, MiB. `scratch_size`: all files
    together, MiB (held only where `memory-scratch` is among the layers).
    """

    memory: int = 1024
    file_size: int = 16
    scratch_size: int = 64


class ForkServer:
    """Owns one fork server with its scratch folder; used by one thread at a time.

    Args:
        limits: Limits of the processes it makes.
        disabled: Layers not to use, `namespaces` for all of them; for tests and measurements.

    Raises:
        ServerError: If it does not start.
    """

    def __init__(
        self, limits: Limits | None = None, *, disabled: frozenset[str] = frozenset()
    ) -> None:
        limits = limits or Limits()
        self._scratch = tempfile.mkdtemp(prefix="sdpo-mbpp-")
        settings = {
            "scratch": self._scratch,
            "disabled": sorted(disabled),
            **dataclasses.asdict(limits),
        }
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                self._process = _spawn(settings, theirs)
            self._control.settimeout(_START_SECONDS)
            hello = json.loads(self._receive())
            self._control.settimeout(_END_SECONDS)
        except BaseException:
            self._control.close()
            shutil.rmtree(self._scratch, ignore_errors=True)
            raise
        self.layers: list[str] = hello["layers"]

    @contextlib.contextmanager
    def session(self) -> Iterator["Session"]:
        """Processes of one run; at the end all are killed and the scratch folder is emptied.

        Raises:
            ServerError: If the server ended meanwhile.
        """
        session = Session(self._control)
        try:
            yield session
        finally:
            # Killed first, closed then: nobody needs to wake up for the end of the connection.
            try:
                session.problem = self._end()
            finally:
                session.close()

    def _end(self) -> str:
        try:
            self._control.send(b"E")
        except OSError as error:
            raise ServerError("a fork server ended unexpectedly") from error
        answer = self._receive()
        return "" if answer == ENDED else answer.decode()

    def _receive(self) -> bytes:
        try:
            message = self._control.recv(1 << 16)
        except OSError as error:
            raise ServerError(f"a fork server does not answer: {error}") from error
        if not message:
            raise ServerError("a fork server ended unexpectedly")
        return message

    def close(self) -> None:
        """End the server and every process below it, and remove its scratch folder."""
        with contextlib.suppress(OSError):
            # It may have ended already.
            self._control.send(b"Q")
        self._control.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._scratch, ignore_errors=True)


class Session:
    """Starts the processes of one run.

    `problem` says, after the end of the session, why one did not start; else it is empty.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._ends: list[socket.socket] = []
        self.problem = ""

    def start(self, kind: Literal["submission", "tests"], cpu_seconds: float) -> Peer:
        """Start a process.

        Args:
            kind: What it will work on.
            cpu_seconds: Limit of processor time.

        Raises:
            ServerError: If the server ended.
        """
        ours, theirs = socket.socketpair()
        self._ends.append(ours)
        message = f"{kind[0].upper()}{math.ceil(cpu_seconds) + 1}".encode()
        with theirs:
            try:
                socket.send_fds(self._control, [message], [theirs.fileno()])
            except OSError as error:
                raise ServerError("a fork server ended unexpectedly") from error
        return Peer(ours)

    def close(self) -> None:
        """Close the connections to the processes."""
        for end in self._ends:
            end.close()


def _spawn(settings: dict, control: socket.socket) -> subprocess.Popen[bytes]:
    # -P and the bare environment give the isolation of -I; -I itself would ignore the hash seed,
    # on which the order of sets, and with it the feedback, depends. Functions of shared libraries
    # are bound at the start, or every child would bind them anew.
    interpreter = getattr(sys, "_base_executable", None) or sys.executable
    command = [interpreter, "-S", "-s", "-P", "-B", "-X", "utf8", "-c", _BOOTSTRAP, _PACKAGE]
    return subprocess.Popen(
        [*command, json.dumps({**settings, "control": control.fileno()})],
        env={"PYTHONHASHSEED": "0", "LD_BIND_NOW": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(control.fileno(),),
        start_new_session=True,
        cwd="/",
    )


def require_core(layers: list[str]) -> None:
    """Check that the core layers are active.

    Raises:
        IsolationError: If one is missing.
    """
    missing = [layer for layer in CORE_LAYERS if layer not in layers]
    if missing:
        raise IsolationError(
            f"isolation layers missing on this machine: {', '.join(missing)} "
            f"(active: {', '.join(layers) or 'none'}); run on Linux 5.13 or newer with Landlock "
            "and seccomp, or drop --require-isolation"
        )
