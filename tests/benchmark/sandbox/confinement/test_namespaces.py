"""In namespaces of its own a process is alone, has no network and cannot write to the machine."""

from pathlib import Path

import pytest

from tests.helpers.confined import needs_linux, printed_by

pytestmark = needs_linux

# The first child is process 1 of the new namespaces.
_CODE = """
import sys
scratch, elsewhere = sys.argv[1:]
entered = namespaces.enter()
if not entered:
    print("refused")
    sys.exit()
if os.fork() == 0:
    sealed = namespaces.seal_file_system(scratch, 1)
    print("process", os.getpid(), os.getppid())
    print("connect", tried(socket.create_connection, ("127.0.0.1", 9), 1) != "done")
    print("interfaces", [name for _, name in socket.if_nameindex() if name != "lo"])
    if "read-only-root" in sealed:
        print("write elsewhere", tried(open, elsewhere + "/new", "w"))
    if "memory-scratch" in sealed:
        print("write", tried(open(scratch + "/new", "wb", 0).write, bytes(1 << 19)))
        print("fill", tried(open(scratch + "/more", "wb").write, bytes(1 << 21)))
    sys.stdout.flush()
    os._exit(0)
sys.exit(os.wait()[1])
"""


def test_a_sealed_process_is_alone(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    lines = printed_by(_CODE, str(tmp_path / "scratch"), str(tmp_path))
    if lines == ["refused"]:
        pytest.skip("this kernel refuses namespaces")
    expected = {
        "process 1 0",
        "connect True",
        "interfaces []",
        "write elsewhere OSError",
        "write done",
        "fill OSError",
    }
    assert set(lines[:3]) <= expected
    assert set(lines) <= expected
    assert list((tmp_path / "scratch").iterdir()) == []
