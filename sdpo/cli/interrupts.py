"""How commands of the benchmark end when they are told to."""

import contextlib
import signal
import threading
from collections.abc import Iterator

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C or a request to terminate ended."""


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Let a request to terminate end the run as Ctrl-C does: in order, leaving no process."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
