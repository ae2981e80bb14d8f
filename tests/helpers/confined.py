"""Runs code in a process of its own, which may give up its rights."""

import subprocess
import sys
import textwrap

import pytest

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="confinement is Linux's")

# `tried(f, ...)` says what came of a call: "done", or the name of the error that refused it.
_PRELUDE = """
import os, socket, threading
from sdpo.benchmark.sandbox.confinement import kernel, landlock, namespaces, seccomp
def tried(function, *arguments):
    try:
        function(*arguments)
    except OSError as error:
        return type(error).__name__
    return "done"
"""


def printed_by(code: str, *arguments: str) -> list[str]:
    """Lines that the code prints, given its arguments in `sys.argv[1:]`."""
    command = [sys.executable, "-c", _PRELUDE + textwrap.dedent(code), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
