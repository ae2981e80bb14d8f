"""An audit in a process of its own: `python -m sdpo.parity.audit.worker REQUEST RESULT`.

The candidate's code runs here, away from the process that reports: it may print, exit or crash.
"""

import gc
import resource
import sys

from rich.progress import TaskID

from sdpo.parity.audit.child_process import answer
from sdpo.parity.audit.request import Request
from sdpo.parity.report.run_report import RunReport
from sdpo.runtime.progress import progress_bars

_LARGEST_FILE = 1 << 28
"""Bytes that a file may have which an audit's process writes, the candidate's log among them."""


def main(request_file: str, result_file: str) -> None:
    """Read the request, audit with a progress bar on standard error, write the report."""
    # what a candidate prints must not fill the disk; beyond this, printing raises
    resource.setrlimit(resource.RLIMIT_FSIZE, (_LARGEST_FILE, resource.RLIM_INFINITY))
    answer(request_file, result_file, Request, _audited)


def _audited(request: Request) -> RunReport:
    gc.disable()  # searching what imports leave for garbage is a sixth of the time torch takes
    from sdpo.parity.audit.audit import audit

    gc.freeze()
    gc.enable()
    with progress_bars(transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def advance(family: str, done: int, total: int) -> None:
            if family not in tasks:
                tasks[family] = bars.add_task(f"{request.candidate}: {family}", total=total)
            bars.update(tasks[family], completed=done)

        return audit(request, advance)


if __name__ == "__main__":
    main(*sys.argv[1:])
