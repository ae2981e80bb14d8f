"""Says how commands of the benchmark end: told to, or because something went wrong."""

import contextlib
import errno
import signal
import threading
from collections.abc import Iterator

import typer

_INTERRUPTED = 130
"""Exit code of a command that Ctrl-C or a request to terminate ended."""


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
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


@contextlib.contextmanager
def reported(start: str = "the last checkpoint") -> Iterator[None]:
    """Turn what can go wrong into one line starting with ERROR and an exit code.

    Args:
        start: where the same command continues after Ctrl-C.
    """
    from sdpo.benchmark.problems.dataset import DataError
    from sdpo.benchmark.results.load_runs import ResultsError
    from sdpo.benchmark.runs.records import BusyError
    from sdpo.benchmark.runs.run_many import BenchError
    from sdpo.benchmark.runs.settings import SettingsError
    from sdpo.benchmark.sandbox.client import IsolationError, ServerError
    from sdpo.benchmark.scoring.score_file import RunError

    goes_on = f"the same command continues from {start}"
    of_runs = (SettingsError, ResultsError, BenchError, BusyError, OSError)
    try:
        with _terminable():
            yield
    except (DataError, RunError, IsolationError, ServerError, *of_runs) as error:
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        fix = f": the disk is full; make room, then {goes_on}" if full else ""
        print(f"ERROR {' '.join(str(error).split())}{fix}")
        raise typer.Exit(2) from error
    except KeyboardInterrupt:
        print(f"ERROR interrupted; {goes_on}")
        raise typer.Exit(_INTERRUPTED) from None
