"""Frames have the form that the other side reads."""

import os

import pytest

from sdpo.benchmark.sandbox.wire import Pipe, pack, unpack


def test_a_frame_is_four_bytes_of_length_and_ascii() -> None:
    assert pack({"a": 1}) == b'\x00\x00\x00\x07{"a":1}'
    assert pack("é") == b'\x00\x00\x00\x08"\\u00e9"'


def test_what_is_not_ascii_json_is_refused() -> None:
    assert unpack(bytearray(b"[1]")) == [1]
    for payload in (b"{", b'"\xff"', b""):
        with pytest.raises(ValueError, match=r"Expecting|ordinal"):
            unpack(bytearray(payload))


def test_a_pipe_keeps_what_came_with_a_message() -> None:
    out, into = os.pipe()
    Pipe(into).send([1])
    Pipe(into).send({"two": 2})
    pipe = Pipe(out)
    assert pipe.receive() == [1]
    assert pipe.receive() == {"two": 2}
    os.close(into)
    with pytest.raises(EOFError, match="the harness is gone"):
        pipe.receive()
    os.close(out)
