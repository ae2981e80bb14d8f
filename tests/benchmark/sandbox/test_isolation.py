"""A run, an executor's end and the harness's death leave nothing behind."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sdpo.benchmark.sandbox.cleanup import descendants
from sdpo.benchmark.scoring.executor import Executor
from tests.helpers.confined import needs_linux
from tests.helpers.programs.honest import RIGHT, Program
from tests.helpers.programs.hostile import ENDLESS, NOISY
from tests.helpers.programs.protocol import PROTOCOL
from tests.helpers.spread import slow_are

_WAIT_SECONDS = 20


def eventually(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + _WAIT_SECONDS
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder for scratch that no other test uses."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_close_leaves_no_process_and_no_file(temporary: Path) -> None:
    before = set(descendants(os.getpid()))
    with Executor(2, timeout=5) as executor:
        assert len(set(descendants(os.getpid())) - before) >= 2
        assert len(list(temporary.iterdir())) == 2
        list(executor.map([p.case() for p in NOISY.values()]))
    assert set(descendants(os.getpid())) == before
    assert list(temporary.iterdir()) == []


def test_no_process_and_no_file_between_runs() -> None:
    with Executor(1, timeout=5) as executor:
        idle = set(descendants(os.getpid()))
        for program in NOISY.values():
            executor.submit(program.case()).result()
            assert set(descendants(os.getpid())) == idle
        (server,) = executor._servers
        assert os.listdir(server._scratch) == []


@needs_linux
def test_descriptors_that_a_submission_sends_are_not_kept(executor: Executor) -> None:
    before = len(os.listdir("/proc/self/fd"))
    assert executor.submit(PROTOCOL["sends descriptors"].case()).result().status == "fail"
    assert len(os.listdir("/proc/self/fd")) == before


def _cases_file(folder: Path) -> Path:
    lines = []
    for name in ("loop in the call", "thread that loops"):
        program = ENDLESS[name]
        lines.append({"id": name, "completion": program.completion, "test_list": program.tests})
    path = folder / "cases.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize(
    "number", slow_are((signal.SIGINT,), (signal.SIGKILL, signal.SIGINT, signal.SIGTERM))
)
def test_the_end_of_the_harness_ends_everything(tmp_path: Path, number: int) -> None:
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    command = [sys.executable, "-m", "sdpo", "mbpp", "exec", str(_cases_file(tmp_path))]
    command += ["--out", str(tmp_path / "out"), "--timeout", "60", "--workers", "2"]
    environment = {**os.environ, "TMPDIR": str(scratch)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    # A shell starts what runs in the background with SIGINT ignored, and children inherit that.
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        command, env=environment, text=True, preexec_fn=heard, **pipes
    ) as process:
        assert eventually(lambda: len(descendants(process.pid)) >= 6)
        below = descendants(process.pid)
        process.send_signal(number)
        output = process.communicate(timeout=_WAIT_SECONDS)[0]
    assert eventually(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in below))
    assert eventually(lambda: list(scratch.iterdir()) == [])
    if number != signal.SIGKILL:
        assert process.returncode == 130
        assert output.startswith("ERROR interrupted")


def test_a_daemon_is_found_without_the_filter() -> None:
    program = Program(
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        "        time.sleep(60)\n    os._exit(0)\ndef add(a, b):\n    return a + b",
        (),
    )
    with Executor(1, disabled=frozenset({"seccomp", "namespaces"})) as executor:
        idle = set(descendants(os.getpid()))
        assert executor.submit(program.case()).result().status == "pass"
        assert set(descendants(os.getpid())) == idle


def test_a_lost_fork_server_is_replaced(executor: Executor) -> None:
    with Executor(1) as own:
        (server,) = own._servers
        for process in descendants(server._process.pid):
            os.kill(process, signal.SIGKILL)
        assert own.submit(RIGHT["plain"].case()).result().status == "pass"


def test_an_executor_does_not_survive_a_fork() -> None:
    with Executor(1) as executor:
        executor._owner = -1
        with pytest.raises(RuntimeError, match="make one in each process"):
            executor.submit(RIGHT["plain"].case())
        executor._owner = os.getpid()


@pytest.mark.slow
def test_five_thousand_runs_do_not_grow() -> None:
    def memory() -> int:
        own = [os.getpid(), *descendants(os.getpid())]
        return sum(int(Path(f"/proc/{p}/statm").read_text().split()[1]) * 4 for p in own)

    programs = [*RIGHT.values(), *NOISY.values()]
    programs = [p for p in programs if len(p.completion) < 10_000]
    cases = [programs[i % len(programs)].case() for i in range(5000)]
    with Executor(2, timeout=30) as executor:
        list(executor.map(cases[:1000]))
        idle, used, files = (
            set(descendants(os.getpid())),
            memory(),
            len(os.listdir("/proc/self/fd")),
        )
        list(executor.map(cases))
        assert set(descendants(os.getpid())) == idle
        assert len(os.listdir("/proc/self/fd")) == files
        assert memory() - used < 20_000, "KiB"
