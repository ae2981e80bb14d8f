"""A limit on how long one call of a candidate may take."""

import faulthandler
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO

TIMEOUT = 60
"""Seconds that a call may take, unless asked otherwise."""
_LONGER = 1.5
"""After how many times its limit a call that cannot be interrupted ends the process."""
_calls: list[tuple[float, str]] = []
_file: IO[str] | None = None


class CallTimeoutError(BaseException):
    """A call did not return in time; no `except Exception` of a candidate catches it."""


@contextmanager
def ending_what_hangs(file: Path) -> Iterator[None]:
    """End this process where a call inside outlasts its limit by half: it was not interrupted.

    Python needs not get to run for that. `what_hung` reads from the file what it was.
    """
    global _file
    with file.open("w+", encoding="utf-8") as _file:
        try:
            yield
        finally:
            _file = None


def what_hung(file: Path) -> str:
    """What a process was ended for by `ending_what_hangs`; empty if it was not."""
    text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    what, _, traceback = text.partition("\n")
    return what if traceback.startswith("Timeout") else ""


def _watch() -> None:
    """Let the innermost call end the process if it takes too long; none if there is no call."""
    if _file is None:
        return
    faulthandler.cancel_dump_traceback_later()
    if not _calls:
        return
    seconds, what = _calls[-1]
    _file.seek(0)
    _file.truncate()
    _file.write(f"{what}\n")
    _file.flush()
    faulthandler.dump_traceback_later(_LONGER * seconds + 1, exit=True, file=_file)


@contextmanager
def time_limit(seconds: float, what: str = "") -> Iterator[None]:
    """Interrupt what runs inside, called `what`, after some seconds.

    Code that never returns to Python goes on, but inside of `ending_what_hangs`. Without
    effect at 0, outside the main thread, and where the system has no alarms.

    Raises:
        CallTimeoutError: the time is over.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not seconds or not in_main or not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise CallTimeoutError(f"did not return within {seconds:g} s")

    handler, timer = signal.signal(signal.SIGALRM, stop), (0.0, 0.0)
    _calls.append((seconds, what))
    try:
        _watch()
        timer = signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)
        _calls.pop()
        _watch()
