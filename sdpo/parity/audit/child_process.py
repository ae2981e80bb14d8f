"""A process that works for the command: JSON in, JSON out, whatever goes wrong."""

import io
import json
import math
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sdpo.parity.cases.failure import described
from sdpo.runtime.atomic_write import write_atomically


def answer(
    request_file: str, result_file: str, work: Callable[[Mapping[str, Any]], Mapping[str, Any]]
) -> None:
    """Read the request, do the work, write its result; of a failure of ours `crash` says what.

    The traceback of a crash goes to standard output, which is the log.
    """
    # what the candidate prints never fails for want of a character; the log is UTF-8
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    # Ctrl-C ends this process and those that it forks at once: the command says so, nobody else
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    try:
        result = work(request)
    except ModuleNotFoundError as error:
        result = {"crash": described(error)}
    except Exception as error:
        traceback.print_exc(file=sys.stdout)
        result = {"crash": f"the audit itself failed: {described(error)}"}
    write_atomically(Path(result_file), json.dumps(plain(result)))


def plain(value: Any) -> Any:
    """A document without what JSON or UTF-8 lack: NaN, infinities, halves of characters.

    They become texts; halves (lone surrogates) their escapes.
    """
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str) and not value.isascii():
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    return value
