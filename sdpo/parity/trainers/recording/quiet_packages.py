"""Keep what packages print and send out of an audit."""

import contextlib
import importlib.util
import sys
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep standard output for the report: what a trainer prints goes to standard error."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        stack.enter_context(_transformers_logs_errors_only())
        stack.enter_context(_telemetry_off())
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _transformers_logs_errors_only() -> Iterator[None]:
    """Silence transformers' log and progress bars, where it is installed."""
    if importlib.util.find_spec("transformers") is None:
        yield
        return
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _telemetry_off() -> Iterator[None]:
    """Send no telemetry, where huggingface_hub is installed.

    TRL's trainers send theirs from a thread of its own, which looks up names and opens TLS
    connections while training changes the environment; glibc allows no reading beside writing.
    """
    if importlib.util.find_spec("huggingface_hub") is None:
        yield
        return
    from huggingface_hub import constants

    before = constants.HF_HUB_DISABLE_TELEMETRY
    constants.HF_HUB_DISABLE_TELEMETRY = True
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_TELEMETRY = before
