"""What a trainer prints and sends stays out of the report."""

import warnings
from logging import ERROR

from huggingface_hub import constants
from transformers.utils import logging

from sdpo.parity.trainers.recording.quiet_packages import quiet


def test_prints_go_to_standard_error_and_warnings_nowhere(capsys):
    with quiet():
        print("loss 0.5")
        warnings.warn("deprecated", stacklevel=1)
    assert capsys.readouterr() == ("", "loss 0.5\n")


def test_telemetry_and_logs_are_off_and_come_back():
    before = (constants.HF_HUB_DISABLE_TELEMETRY, logging.get_verbosity())
    with quiet():
        assert constants.HF_HUB_DISABLE_TELEMETRY
        assert logging.get_verbosity() == ERROR
        assert not logging.is_progress_bar_enabled()
    assert (constants.HF_HUB_DISABLE_TELEMETRY, logging.get_verbosity()) == before
