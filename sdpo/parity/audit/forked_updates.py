"""Cases of our own implementation run in a forked process, so that two cores are used.

The results come back as JSON, so that they are what they would be here.
"""

import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch

from sdpo.parity.cases.checked_call import CandidateError
from sdpo.parity.compare.verdict import CaseResult
from sdpo.runtime.atomic_write import write_atomically

Work = Callable[[], list[CaseResult]]

FEWEST = 8
"""Cases from which a process of their own pays: it imports what this one may import as well."""


def worth_forking(cases: int) -> bool:
    """Whether so many cases are done sooner beside other work, and can be."""
    return (
        cases >= FEWEST
        and (os.cpu_count() or 1) > 1
        and "fork" in multiprocessing.get_all_start_methods()
        and not torch.cuda.is_initialized()
    )


class ForkedWork:
    """Starts work in a forked process at once; `results` waits for it."""

    def __init__(self, work: Work) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="sdpo-beside-")
        self._path = Path(self._folder.name) / "results.json"
        context = multiprocessing.get_context("fork")
        self._process = context.Process(target=_run, args=(work, self._path), daemon=True)
        self._process.start()

    def results(self) -> list[CaseResult]:
        """What the work returned.

        Raises:
            CandidateError: the work raised it.
            RuntimeError: the process ended without a result.
        """
        self._process.join()
        document = json.loads(self._path.read_text("utf-8")) if self._path.exists() else None
        self._folder.cleanup()
        if document is None:
            code = self._process.exitcode
            raise RuntimeError(f"the process beside the audit ended with exit code {code}")
        if "error" in document:
            raise CandidateError(document["stage"], document["error"])
        return msgspec.convert(document["cases"], list[CaseResult])


def _run(work: Work, path: Path) -> None:
    try:
        document = {"cases": work()}
    except CandidateError as error:
        document = {"stage": error.stage, "error": str(error)}
    # json, not msgspec, as it has a form for NaN and infinities
    write_atomically(path, json.dumps(msgspec.to_builtins(document)))
