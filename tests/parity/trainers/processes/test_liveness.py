"""When processes count as idle, and which functions they are said to wait in."""

import os
from typing import Any

import pytest

from sdpo.parity.trainers.processes import liveness
from sdpo.parity.trainers.processes.liveness import (
    IdleClock,
    innermost_functions,
    processor_time,
)


class Process:
    pid = 1


PAIR: Any = [Process(), Process()]


def clock_at(monkeypatch: pytest.MonkeyPatch, readings: dict[float, tuple[float, str]]) -> list:
    """Whether two processes are idle at some times, each having computed so much, in that state."""
    times, values = iter([0.0, *readings]), iter(readings.values())
    monkeypatch.setattr(liveness.time, "monotonic", lambda: next(times))
    clock, idle = IdleClock(), []
    for reading in values:
        monkeypatch.setattr(liveness, "processor_time", lambda pid, at=reading: at)
        idle.append(clock.is_idle(PAIR))
    return idle


def test_ten_seconds_without_computing_are_idle(monkeypatch):
    readings = {1.0: (5.0, "S"), 11.0: (5.0, "S"), 11.1: (5.0, "S")}
    assert clock_at(monkeypatch, readings) == [False, False, True]


def test_threads_that_wake_up_do_not_count_as_work(monkeypatch):
    """Two processes with 0.1 s each are 0.2 s, less than the 0.3 s that count."""
    assert clock_at(monkeypatch, {5.0: (0.1, "S"), 10.5: (0.1, "S")}) == [False, True]


def test_work_starts_the_time_anew(monkeypatch):
    assert clock_at(monkeypatch, {5.0: (0.2, "S"), 10.5: (0.2, "S")}) == [False, False]


@pytest.mark.parametrize("state", ["T", "?"])
def test_a_process_that_is_stopped_or_unknown_counts_as_working(monkeypatch, state):
    assert clock_at(monkeypatch, {1000.0: (0.0, state)}) == [False]


def test_the_clock_of_this_process_runs_and_that_of_none_is_unknown():
    seconds, state = processor_time(os.getpid())
    assert seconds > 0
    assert state == "R"
    assert processor_time(None) == (0.0, "?")


def test_the_deepest_thread_says_where_a_process_waits():
    stacks = """Thread 0x1 (most recent call first):
  File "a.py", line 7 in wait
Current thread 0x2 (most recent call first):
  File "b.py", line 1 in all_reduce
  File "b.py", line 2 in wrapper
  File "b.py", line 3 in backward
  File "b.py", line 4 in <lambda>
  File "b.py", line 5 in step
  File "b.py", line 6 in train
  File "b.py", line 7 in main
"""
    assert innermost_functions(stacks) == ["all_reduce", "backward", "step", "train"]
