"""Files and processes of a run are removed, however they hide."""

import os
import subprocess
import sys
from pathlib import Path

from sdpo.benchmark.sandbox.cleanup import descendants, empty_folder


def test_descendants_are_children_and_theirs() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as child:
        while len(below := descendants(child.pid)) < 1:
            assert child.poll() is None
        assert {child.pid, *below} <= set(descendants(os.getpid()))
        child.communicate(b"\n")
    assert not {child.pid, *below} & set(descendants(os.getpid()))


def test_cleaning_needs_neither_recursion_nor_permission(tmp_path: Path) -> None:
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        for _ in range(2000):
            os.mkdir("d")
            os.chdir("d")
    finally:
        os.chdir(here)
    os.mkdir(tmp_path / "locked", 0)
    os.symlink("/", tmp_path / "link")
    (tmp_path / "file\n").write_text("x")
    assert empty_folder(str(tmp_path)) > 2000
    assert list(tmp_path.iterdir()) == []
    assert os.path.isdir("/")
