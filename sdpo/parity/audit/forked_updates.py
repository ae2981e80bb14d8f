"""Cases of our own implementation run in a process beside this one, so that two cores are used.

The results come back as JSON in the form of a report, so that they are what they would be here.
"""

import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sdpo.parity.cases.checked_call import CandidateError
from sdpo.parity.compare.verdict import CaseResult
from sdpo.parity.report.document import compact
from sdpo.parity.report.rejudge import case_result
from sdpo.runtime.atomic_write import write_atomically

Work = Callable[[], list[CaseResult]]

FEWEST = 8
"""Cases from which a process of their own pays: it imports what this one may import as well."""


def pays(cases: int) -> bool:
    """Whether so many cases are done sooner beside other work, and can be."""
    return (
        cases >= FEWEST
        and (os.cpu_count() or 1) > 1
        and "fork" in multiprocessing.get_all_start_methods()
        and not torch.cuda.is_initialized()
    )


class Beside:
    """Starts work in a forked process at once; `results` waits for it."""

    def __init__(self, work: Work) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="sdpo-beside-")
        self.path = Path(self.folder.name) / "results.json"
        context = multiprocessing.get_context("fork")
        self.process = context.Process(target=_run, args=(work, self.path), daemon=True)
        self.process.start()

    def results(self) -> list[CaseResult]:
        """What the work returned.

        Raises:
            CandidateError: the work raised it.
            RuntimeError: the process ended without a result.
        """
        self.process.join()
        found = json.loads(self.path.read_text("utf-8")) if self.path.exists() else None
        self.folder.cleanup()
        if found is None:
            code = self.process.exitcode
            raise RuntimeError(f"the process beside the audit ended with exit code {code}")
        if "error" in found:
            raise CandidateError(found["stage"], found["error"])
        return [case_result(case) for case in found["cases"]]


def _run(work: Work, path: Path) -> None:
    try:
        found: dict[str, Any] = {"cases": [_row(result) for result in work()]}
    except CandidateError as error:
        found = {"stage": error.stage, "error": str(error)}
    write_atomically(path, json.dumps(found))


def _row(result: CaseResult) -> dict[str, Any]:
    """A case as `case_result` reads it."""
    comparisons = [compact(comparison) for comparison in result.comparisons]
    return {**vars(result), "status": result.status, "comparisons": comparisons}
