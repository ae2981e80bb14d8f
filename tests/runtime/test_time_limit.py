"""A limit on how long a call may take."""

import signal
import subprocess
import sys
import time

import pytest

from sdpo.runtime.time_limit import CallTimeoutError, time_limit, what_hung


def test_what_takes_too_long_is_interrupted_though_it_catches_exceptions():
    def stubborn():
        while True:
            try:
                time.sleep(1)
            except Exception:
                continue

    begun = time.monotonic()
    with pytest.raises(CallTimeoutError, match=r"did not return within 0\.1 s"), time_limit(0.1):
        stubborn()
    assert time.monotonic() - begun < 5


def test_an_alarm_of_somebody_else_goes_on_afterwards():
    before = signal.getitimer(signal.ITIMER_REAL)[0]
    with time_limit(5):
        pass
    after = signal.getitimer(signal.ITIMER_REAL)[0]
    assert abs(before - after) < 5


def test_zero_is_no_limit():
    with time_limit(0):
        time.sleep(0.01)


STUBBORN = """
import signal, sys
from pathlib import Path
from sdpo.runtime.time_limit import ending_what_hangs, time_limit

with ending_what_hangs(Path(sys.argv[1])), time_limit(1, "case outer"):
    with time_limit(1, "case inner"):
        pass
    if sys.argv[2] == "hang":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        while True:
            pass
"""


@pytest.mark.parametrize(("end", "code", "hung"), [("hang", 1, "case outer"), ("return", 0, "")])
def test_what_cannot_be_interrupted_ends_its_process(end, code, hung, tmp_path):
    file = tmp_path / "hanging.txt"
    assert what_hung(file) == ""
    command = [sys.executable, "-c", STUBBORN, str(file), end]
    assert subprocess.run(command, check=False, timeout=60).returncode == code
    assert what_hung(file) == hung
