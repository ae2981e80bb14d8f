"""Talks to a confined process, which may send anything or nothing: the harness's end."""

import select
import socket
import time

from sdpo.benchmark.sandbox.wire import CHUNK, HEADER, MAX_FRAME, unpack

# The longest single wait, in seconds; `poll` takes no more than 2^31 ms.
_LONGEST_WAIT = 1e6


class WireError(Exception):
    """The other side closed, sent something that is not a frame, or sent too much."""


class Timeout(Exception):
    """The deadline passed."""


class Peer:
    """Holds a connection where every wait has a deadline and every frame a size limit.

    `frame_size` is the size in bytes of the frame received last.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._readable, self._writable = select.poll(), select.poll()
        self._readable.register(connection, select.POLLIN)
        self._writable.register(connection, select.POLLOUT)
        self._buffer = bytearray()
        self.frame_size = 0

    def send(self, frames: bytes, deadline: float) -> None:
        """Send one or more frames made by `wire.pack`.

        Raises:
            Timeout: If `deadline` (of `time.monotonic`) passes first.
            WireError: If the other side is gone.
        """
        rest = memoryview(frames)
        while rest:
            _wait(self._writable, deadline)
            try:
                rest = rest[self._socket.send(rest) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise WireError("the process ended") from error

    def receive(self, deadline: float) -> object:
        """Receive a frame and decode its JSON.

        Raises:
            Timeout: If `deadline` (of `time.monotonic`) passes first.
            WireError: If the other side is gone, or what came is not a frame of JSON.
        """
        size = HEADER.unpack(self._exactly(HEADER.size, deadline))[0]
        if size > MAX_FRAME:
            raise WireError(f"a message of {size} bytes; the limit is {MAX_FRAME}")
        self.frame_size = size
        payload = self._exactly(size, deadline)
        try:
            return unpack(payload)
        except (ValueError, RecursionError) as error:
            raise WireError("a message that is not JSON") from error

    def _exactly(self, size: int, deadline: float) -> bytearray:
        while len(self._buffer) < size:
            _wait(self._readable, deadline)
            try:
                part = self._socket.recv(CHUNK)
            except OSError as error:
                raise WireError("the process ended") from error
            if not part:
                raise WireError("the process ended")
            self._buffer += part
        result = self._buffer[:size]
        del self._buffer[:size]
        return result


def _wait(ready: select.poll, deadline: float) -> None:
    """Wait until a socket is ready or the other side is gone; raises `Timeout`."""
    while (remaining := deadline - time.monotonic()) > 0:
        if ready.poll(1000 * min(remaining, _LONGEST_WAIT)):
            return
    raise Timeout
