"""Under a rule set, files outside the given folders cannot be opened, and these only as allowed."""

from pathlib import Path

import pytest

from sdpo.benchmark.sandbox.confinement import landlock
from tests.helpers.confined import needs_linux, printed_by

pytestmark = needs_linux

_CODE = """
import sys
readable, writable, outside = sys.argv[1:]
kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
landlock.restriction(landlock.ruleset([readable], [writable]))()
os.chdir(writable)
print("read", tried(open, readable + "/file"), tried(open, outside + "/file"))
print("write", tried(open, "new", "w"), tried(open, readable + "/new", "w"))
print("make a folder", tried(os.mkdir, "folder"), tried(os.mkdir, outside + "/folder"))
print("rename out", tried(os.rename, "new", outside + "/new") != "done")
print("list", tried(os.listdir, readable), tried(os.listdir, outside))
print("make a socket", tried(socket.socket(socket.AF_UNIX).bind, "socket"))
os.chmod("program", 0o700)
print("execute", tried(os.execv, "program", ["program"]))
"""


def test_each_right_ends_where_its_folder_ends(tmp_path: Path) -> None:
    try:
        landlock.version()
    except OSError:
        pytest.skip("this kernel has no Landlock")
    folders = [tmp_path / name for name in ("readable", "writable", "outside")]
    for folder in folders:
        folder.mkdir()
        (folder / "file").write_text("x")
    (folders[1] / "program").write_text("#!/bin/true\n")
    assert printed_by(_CODE, *map(str, folders)) == [
        "read done PermissionError",
        "write done PermissionError",
        "make a folder done PermissionError",
        "rename out True",
        "list done PermissionError",
        "make a socket PermissionError",
        "execute PermissionError",
    ]
