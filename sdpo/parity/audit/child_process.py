"""A process that works for the command: JSON in, JSON out, whatever goes wrong."""

import io
import json
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec import Struct

from sdpo.parity.cases.failure import described
from sdpo.runtime.atomic_write import write_atomically
from sdpo.runtime.json_values import json_safe
from sdpo.runtime.time_limit import ending_what_hangs, what_hung

_HANGING = "hanging.txt"
_Request = TypeVar("_Request", bound=Struct)
_Result = TypeVar("_Result", bound=Struct)


class Crash(Struct, frozen=True, forbid_unknown_fields=True):
    """What failed in the process, in one line."""

    crash: str


class Ended(NamedTuple):
    """How a process ended: what it left, None if nothing, its exit code, and what hung in it."""

    result: Any
    code: int
    hung: str = ""

    @property
    def problem(self) -> str:
        """Say why there is no result; empty if there is one."""
        if self.hung:
            return f"{self.hung} did not return, and could not be interrupted"
        if self.result is None:
            return f"the process ended with exit code {self.code}"
        return self.result.crash if isinstance(self.result, Crash) else ""


def run_child(
    arguments: Sequence[str], request: Struct, log: Path, result_type: type[_Result]
) -> Ended:
    """Run a module in a process of its own.

    Args:
        arguments: the module and what comes before the files of request and result.
        request: sent as JSON.
        log: gets what the process prints on standard output.
        result_type: of what the process answers, if it does not crash.
    """
    with tempfile.TemporaryDirectory(prefix="sdpo-audit-") as scratch:
        request_file, result_file = Path(scratch) / "request.json", Path(scratch) / "result.json"
        # json, not msgspec, as names may hold bytes that are not UTF-8
        request_file.write_text(json.dumps(msgspec.to_builtins(request)), encoding="utf-8")
        command = [sys.executable, "-m", *arguments, request_file, result_file]
        with log.open("ab") as output:
            process = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, check=False)
        if not result_file.exists():
            hung = what_hung(result_file.with_name(_HANGING))
            return Ended(None, process.returncode, hung)
        document = json.loads(result_file.read_text(encoding="utf-8"))
    kind = Crash if "crash" in document else result_type
    return Ended(msgspec.convert(document, kind), process.returncode)


def answer(
    request_file: str,
    result_file: str,
    request_type: type[_Request],
    work: Callable[[_Request], Struct],
) -> None:
    """Read the request, do the work, write its result; of a failure of ours `Crash` says what.

    The traceback of a crash goes to standard output, which is the log.
    """
    # what the candidate prints never fails for want of a character; the log is UTF-8
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    # Ctrl-C ends this process and those that it forks at once: the command says so, nobody else
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    document = json.loads(Path(request_file).read_text(encoding="utf-8"))
    request = msgspec.convert(document, request_type)
    try:
        with ending_what_hangs(Path(result_file).with_name(_HANGING)):
            result = work(request)
    except ModuleNotFoundError as error:
        result = Crash(described(error))
    except Exception as error:
        traceback.print_exc(file=sys.stdout)
        result = Crash(f"the audit itself failed: {described(error)}")
    write_atomically(Path(result_file), json.dumps(json_safe(msgspec.to_builtins(result))))
