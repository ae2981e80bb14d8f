"""What the user sees when the tool itself fails: one line, and exit code 2.

Exit code 1, which Python gives for an uncaught exception, means DIVERGENT here.
"""

import contextlib
import errno
import io
import json
import os
import select
import sys
import traceback
from collections.abc import Callable

FAILED, INTERRUPTED = 2, 130
_FULL = "; the disk is full: make room, and repeat the command"
_DEFECT = "; a defect of sdpo: please report it, SDPO_TRACEBACK=1 shows all of it"
_EXTRAS = {
    "train": ("transformers", "trl", "peft", "accelerate", "datasets"),
    "peers": ("sdpo_rl",),
}
"""Packages by the extra of ours that installs them."""

_UNENCODABLE = ("strict", "surrogateescape")
"""Handlers of an output stream that fail at a character which its encoding lacks."""


class CrashError(BaseException):
    """A command failed by `__cause__`; no Exception, so that no library handles it on its way."""


def missing(module: str) -> str:
    """Why a module cannot be imported, and what to do."""
    package, _, inner = module.partition(".")
    if inner and package in sys.modules:
        return (
            f"there is no module {module!r} in the package {package!r}, which is installed: check "
            "the name, or install a version that has it"
        )
    extra = next((extra for extra, names in _EXTRAS.items() if package in names), "")
    fix = f"pip install 'sdpo[{extra}]'" if extra else "install it"
    return f"needs the package {module!r}, which is not installed: {fix}"


def described(error: BaseException) -> str:
    """What failed, in one line; of a defect of ours also where."""
    text = " ".join(str(error).split())
    if isinstance(error, ModuleNotFoundError):
        return missing(error.name or text)
    if isinstance(error, OSError) and error.strerror:
        file = (
            f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
        )
        return f"{file}{error.strerror}{_FULL if error.errno == errno.ENOSPC else ''}"
    where = place(error)
    return f"{type(error).__name__}: {text or 'no message'}{f' (at {where})' if where else ''}"


def place(error: BaseException) -> str:
    """Module and line of our code in which an exception was raised; empty if it was elsewhere."""
    where = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        name = frame.f_globals.get("__name__", "")
        where = f"{name}:{line}" if name.split(".")[0] == "sdpo" else where
    return where


def ended(run: Callable[[], int | None], *, as_json: bool = False) -> int:
    """The exit code of a command; whatever it raises is one line and 2, an interruption 130.

    A reader that went away (`| head`) is no failure: what was done keeps its exit code.

    Args:
        run: does the work, prints, and returns an exit code; None stands for 0.
        as_json: the line is a JSON document with the field `error`.
    """
    _tolerant()
    try:
        code = run() or 0
    except CrashError as crash:
        return failure(crash.__cause__ or crash, as_json)
    except SystemExit as exit_:  # rich and typer end by 1 where nobody reads
        if not isinstance(exit_.__context__, BrokenPipeError):
            raise
        return failure(exit_.__context__, as_json)
    except (Exception, KeyboardInterrupt) as error:
        return failure(error, as_json)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _hush()
    except OSError as error:
        _hush()
        return refuse(described(error), as_json, to_stderr=True)
    return code


def failure(error: BaseException, as_json: bool) -> int:
    """Say what went wrong; the exit code."""
    if isinstance(error, KeyboardInterrupt):
        refuse("interrupted", as_json)
        return INTERRUPTED
    if isinstance(error, BrokenPipeError) and _read_by_nobody():
        _hush()
        return FAILED
    if os.environ.get("SDPO_TRACEBACK"):
        traceback.print_exception(error)
    environment = isinstance(error, (OSError, ImportError, MemoryError))
    return refuse(described(error) + ("" if environment else _DEFECT), as_json)


def refuse(message: str, as_json: bool, *, to_stderr: bool = False) -> int:
    """Print a failure or usage error as one line; the exit code is 2."""
    line = f"ERROR {message}"
    if as_json:
        line = json.dumps({"schema_version": 1, "runs": [], "error": message})
    try:
        print(line, file=sys.stderr if to_stderr else sys.stdout, flush=True)
    except OSError:
        _hush()
        with contextlib.suppress(OSError):  # nothing is left to tell it to
            print(line, file=sys.stderr, flush=True)
    return FAILED


def _tolerant() -> None:
    """Characters that an output's encoding lacks become question marks instead of an exception."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in _UNENCODABLE:
            stream.reconfigure(errors="replace")


def _read_by_nobody() -> bool:
    """Whether standard output is a pipe that nobody reads any more."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):  # a stream of a test has none
        return False
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _hush() -> None:
    """Standard output goes nowhere from now on: what is still to be written would fail again."""
    with contextlib.suppress(OSError, ValueError):  # a stream of a test has no descriptor
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
