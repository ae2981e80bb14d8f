"""Frames over a socket: four bytes of length, then JSON in ASCII. The confined end."""

import json
import os
import struct

HEADER = struct.Struct("!I")
# The longest value a test may return, encoded. Far above any honest answer.
MAX_FRAME = 8 << 20
CHUNK = 1 << 16
# The fork server's answer on the control socket at the end of a run without a problem.
ENDED = b"ended"
_encode = json.JSONEncoder(separators=(",", ":")).encode
_decode = json.JSONDecoder().decode


def pack(message: object) -> bytes:
    """Encode a message as one frame."""
    payload = _encode(message).encode("ascii")
    return HEADER.pack(len(payload)) + payload


def unpack(payload: bytearray) -> object:
    """Decode what follows the length.

    Raises:
        ValueError: If it is not JSON in ASCII.
        RecursionError: If it is nested too deep.
    """
    return _decode(payload.decode("ascii"))


class Pipe:
    """The confined end: blocking, on a bare descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._buffer = bytearray()

    def send(self, message: object) -> None:
        """Send a frame; raises `OSError` if the harness is gone."""
        rest = memoryview(pack(message))
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

    def receive(self) -> dict:
        """Receive a frame; raises `EOFError` if the harness is gone."""
        size = HEADER.unpack(self._exactly(HEADER.size))[0]
        return unpack(self._exactly(size))  # pyright: ignore[reportReturnType]

    def _exactly(self, size: int) -> bytearray:
        while len(self._buffer) < size:
            self._fill()
        result = self._buffer[:size]
        del self._buffer[:size]
        return result

    def _fill(self) -> None:
        part = os.read(self._descriptor, CHUNK)
        if not part:
            raise EOFError("the harness is gone")
        self._buffer += part
