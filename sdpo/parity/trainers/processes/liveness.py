"""Tell whether the processes of a training still work, and where they wait if they do not."""

import os
import re
import signal
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

IDLE_LIMIT = 10.0
"""Seconds without work after which several processes are known to wait for each other."""
_STATES_TO_WAIT_FOR = "T?"
"""States of a process that was stopped, or that cannot be read: it counts as working."""
_WAKING_SECONDS = 0.3
"""Processor time within `IDLE_LIMIT` that is no work: threads of a waiting process wake up."""


class IdleClock:
    """Measures for how long some processes have computed nothing."""

    def __init__(self) -> None:
        self.last_worked = time.monotonic()
        self.computed = 0.0

    def is_idle(self, processes: Sequence[BaseProcess]) -> bool:
        """Tell whether none of the processes has worked for longer than the limit."""
        now, clocks = time.monotonic(), [processor_time(process.pid) for process in processes]
        computed = sum(seconds for seconds, _ in clocks)
        unknown = any(state in _STATES_TO_WAIT_FOR for _, state in clocks)
        if unknown or computed - self.computed > _WAKING_SECONDS:
            self.last_worked, self.computed = now, computed
        return now - self.last_worked > IDLE_LIMIT


def processor_time(pid: int | None) -> tuple[float, str]:
    """Read how many seconds a process has computed, and the letter of its state; `?` if unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return 0.0, "?"
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), fields[0]


def where_they_wait(processes: Sequence[BaseProcess], stack_files: Sequence[Path]) -> str:
    """Say why processes hang: the innermost functions that each waits in.

    On SIGUSR1 each process must write the stacks of its threads to its file (faulthandler).
    """
    places = []
    for rank, (process, file) in enumerate(zip(processes, stack_files, strict=True)):
        assert process.pid is not None, "every process was started"
        os.kill(process.pid, signal.SIGUSR1)
        time.sleep(0.2)
        inner = innermost_functions(file.read_text(encoding="utf-8", errors="replace"))
        places.append(f"process {rank} in {' < '.join(inner)}")
    return f"the processes wait for each other for ever: {'; '.join(places)}"


def innermost_functions(stacks: str) -> list[str]:
    """Name up to four functions of the deepest stack among those that faulthandler wrote."""
    threads = [re.findall(r"line \d+ in (\S+)", stack) for stack in stacks.split("hread 0x")]
    deepest = max(threads, key=len)
    return [name for name in deepest if name not in ("wrapper", "<lambda>")][:4]
