"""Frames over a socket: four bytes of length, then JSON in ASCII."""

import json
import os
import struct
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

_HEADER = struct.Struct("!I")
# The longest value a test may return, encoded. Far above any honest answer.
MAX_FRAME = 8 << 20
_CHUNK = 1 << 16


class WireError(Exception):
    """The other side closed, sent something that is not a frame, or sent too much."""


class Timeout(Exception):
    """The deadline passed."""


def pack(message: object) -> bytes:
    """Encode a message as one frame."""
    payload = json.dumps(message, separators=(",", ":")).encode()
    return _HEADER.pack(len(payload)) + payload


class Peer:
    """The harness's end: every wait has a deadline, every frame a size limit.

    `frame_size` is the size in bytes of the frame received last.
    """

    def __init__(self, connection: "socket.socket") -> None:
        self._socket = connection
        self._buffer = bytearray()
        self.frame_size = 0

    def send(self, message: object, deadline: float) -> None:
        """Send a frame.

        Raises:
            Timeout: If `deadline` (of `time.monotonic`) passes first.
            WireError: If the other side is gone.
        """
        try:
            self._wait(deadline)
            self._socket.sendall(pack(message))
        except TimeoutError as error:
            raise Timeout from error
        except OSError as error:
            raise WireError("the process ended") from error

    def receive(self, deadline: float) -> object:
        """Receive a frame and decode its JSON.

        Raises:
            Timeout: If `deadline` (of `time.monotonic`) passes first.
            WireError: If the other side is gone, or what came is not a frame of JSON.
        """
        size = _HEADER.unpack(self._exactly(_HEADER.size, deadline))[0]
        if size > MAX_FRAME:
            raise WireError(f"a message of {size} bytes; the limit is {MAX_FRAME}")
        self.frame_size = size
        payload = self._exactly(size, deadline)
        try:
            return json.loads(payload)
        except (ValueError, RecursionError) as error:
            raise WireError("a message that is not JSON") from error

    def _wait(self, deadline: float) -> None:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise Timeout
        self._socket.settimeout(remaining)

    def _exactly(self, size: int, deadline: float) -> bytes:
        while len(self._buffer) < size:
            self._wait(deadline)
            try:
                part = self._socket.recv(_CHUNK)
            except TimeoutError as error:
                raise Timeout from error
            except OSError as error:
                raise WireError("the process ended") from error
            if not part:
                raise WireError("the process ended")
            self._buffer += part
        result = bytes(self._buffer[:size])
        del self._buffer[:size]
        return result


class Pipe:
    """The confined end: blocking, on a bare descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def send(self, message: object) -> None:
        """Send a frame; raises `OSError` if the harness is gone."""
        rest = memoryview(pack(message))
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

    def receive(self) -> dict:
        """Receive a frame; raises `EOFError` if the harness is gone."""
        return json.loads(self._exactly(_HEADER.unpack(self._exactly(_HEADER.size))[0]))

    def _exactly(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            part = os.read(self._descriptor, size - len(parts))
            if not part:
                raise EOFError("the harness is gone")
            parts += part
        return bytes(parts)
