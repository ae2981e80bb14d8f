"""A fork server starts processes that know nothing of each other, and ends them all."""

import os
import time
from pathlib import Path

import pytest

from sdpo.benchmark.sandbox.cleanup import descendants
from sdpo.benchmark.sandbox.client import ForkServer
from sdpo.benchmark.sandbox.wire import Submission, pack


def run(server: ForkServer, code: str) -> list[object]:
    """The two first messages of a submission's process."""
    deadline = time.monotonic() + 20
    with server.session() as session:
        peer = session.start("submission", 5)
        peer.send(pack(Submission(code=code, imports="", setup="", names=[])), deadline)
        return [peer.receive(deadline), peer.receive(deadline)]


def test_the_end_of_a_session_ends_its_processes(server: ForkServer) -> None:
    before = set(descendants(os.getpid()))
    with server.session() as session:
        for _ in range(2):
            session.start("submission", 5)
            session.start("tests", 5)
        deadline = time.monotonic() + 20
        while len(set(descendants(os.getpid())) - before) < 4:
            assert time.monotonic() < deadline
    assert session.problem == ""
    assert set(descendants(os.getpid())) == before


def test_a_process_writes_where_the_next_finds_nothing(server: ForkServer) -> None:
    assert run(server, "open('left', 'w').close()")[1] == {"ready": True}
    assert run(server, "import os\nassert os.listdir('.') == []")[1] == {"ready": True}


def test_no_process_sees_what_another_changed(server: ForkServer) -> None:
    assert run(server, "import math\nmath.pi = 3")[1] == {"ready": True}
    assert run(server, "import math\nassert math.pi > 3.1")[1] == {"ready": True}
    # These names the server itself defines when it rehearses.
    assert run(server, "assert 'f' not in vars() and 'g' not in vars()")[1] == {"ready": True}


def test_a_closed_server_leaves_no_process_and_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = set(descendants(os.getpid()))
    server = ForkServer()
    assert set(descendants(os.getpid())) > before
    assert len(list(tmp_path.iterdir())) == 1
    server.close()
    assert set(descendants(os.getpid())) == before
    assert list(tmp_path.iterdir()) == []
