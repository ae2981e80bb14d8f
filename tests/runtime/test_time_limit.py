"""A limit on how long a call may take."""

import signal
import time

import pytest

from sdpo.runtime.time_limit import CallTimeoutError, time_limit


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
