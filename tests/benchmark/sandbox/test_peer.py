"""The harness waits no longer than its deadline, and takes nothing that is not a frame."""

import socket
import time
from collections.abc import Iterator

import pytest

from sdpo.benchmark.sandbox.peer import Peer, Timeout, WireError
from sdpo.benchmark.sandbox.wire import HEADER, MAX_FRAME, pack


@pytest.fixture
def ends() -> Iterator[tuple[Peer, socket.socket]]:
    """The harness's end, and the socket of the other side."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Peer(ours), theirs


def soon(seconds: float = 0.05) -> float:
    return time.monotonic() + seconds


def test_messages_arrive_one_by_one_with_their_size(ends: tuple[Peer, socket.socket]) -> None:
    peer, other = ends
    frames = pack({"number": 1}) + pack([2])
    other.sendall(frames[:5])
    other.sendall(frames[5:])
    assert peer.receive(soon(5)) == {"number": 1}
    assert peer.frame_size == len('{"number":1}')
    assert peer.receive(soon(5)) == [2]


def test_silence_and_a_full_buffer_end_at_the_deadline(ends: tuple[Peer, socket.socket]) -> None:
    peer, other = ends
    other.sendall(pack([1])[:-1])
    with pytest.raises(Timeout):
        peer.receive(soon())
    with pytest.raises(Timeout):
        peer.send(bytes(1 << 24), soon())
    with pytest.raises(Timeout):
        peer.receive(time.monotonic() - 1)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (HEADER.pack(MAX_FRAME + 1), "the limit is"),
        (HEADER.pack(1) + b"{", "not JSON"),
        (HEADER.pack(4) + b'"\xff\xfe"', "not JSON"),
        (HEADER.pack(1 << 17) + b"[" * (1 << 17), "not JSON"),
    ],
)
def test_what_is_no_message_is_refused(
    ends: tuple[Peer, socket.socket], data: bytes, words: str
) -> None:
    peer, other = ends
    other.sendall(data)
    with pytest.raises(WireError, match=words):
        peer.receive(soon(5))


def test_the_end_of_the_other_side_is_noticed(ends: tuple[Peer, socket.socket]) -> None:
    peer, other = ends
    other.close()
    with pytest.raises(WireError, match="the process ended"):
        peer.receive(soon(5))
    with pytest.raises(WireError, match="the process ended"):
        peer.send(bytes(1 << 24), soon(5))
