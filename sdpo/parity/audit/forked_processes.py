"""Work in forked processes: a case alone in a fresh one, recorded updates beside the audit."""

import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from functools import partial
from typing import IO

import msgspec
import torch
from safetensors.torch import load, save
from torch import Tensor

from sdpo.parity.cases.checked_call import (
    BrokenGradientError,
    CandidateError,
    LossCandidate,
    NotCoveredError,
    same_bits,
)
from sdpo.parity.cases.loss_case import LossCase
from sdpo.parity.compare.verdict import CaseResult

FEWEST = 8
"""Cases from which a process of their own pays: it imports what this one may import as well."""


def _can_fork() -> bool:
    """Tell whether the system can fork."""
    return "fork" in multiprocessing.get_all_start_methods()


def worth_forking(cases: int) -> bool:
    """Tell whether so many cases are done sooner beside other work, and can be."""
    return (
        cases >= FEWEST
        and (os.cpu_count() or 1) > 1
        and _can_fork()
        and not torch.cuda.is_initialized()
    )


class _ForkedWork:
    """Starts work in a forked process at once; `result` waits for the bytes that it returns."""

    def __init__(self, work: Callable[[], bytes], *, daemon: bool) -> None:
        # without a name, so that nothing is left if a candidate ends this process
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - `result` closes it
        context = multiprocessing.get_context("fork")
        self._process = context.Process(target=_write, args=(work, self._file), daemon=daemon)
        self._process.start()

    def result(self) -> bytes:
        """Wait for what the work returned; empty if its process ended before."""
        self._process.join()
        with self._file:
            self._file.seek(0)
            return self._file.read()

    @property
    def exit_code(self) -> int | None:
        """Return the exit code of the process, None while it runs."""
        return self._process.exitcode


def _write(work: Callable[[], bytes], file: IO[bytes]) -> None:
    """Do the work and write what it returns."""
    file.write(work())
    file.flush()


class ForkedResults:
    """Starts cases of our own implementation in a forked process, so that two cores are used."""

    def __init__(self, work: Callable[[], list[CaseResult]]) -> None:
        self._forked = _ForkedWork(partial(_results_as_json, work), daemon=True)

    def results(self) -> list[CaseResult]:
        """Wait for the results, which are what they would be here.

        Raises:
            CandidateError: the work raised it.
            RuntimeError: the process ended without a result.
        """
        try:
            document = json.loads(self._forked.result())
        except ValueError as error:
            code = self._forked.exit_code
            message = f"the process beside the audit ended with exit code {code}"
            raise RuntimeError(message) from error
        if "error" in document:
            raise CandidateError(document["stage"], document["error"])
        return msgspec.convert(document["cases"], list[CaseResult])


def _results_as_json(work: Callable[[], list[CaseResult]]) -> bytes:
    """Do the work, and write down its results or its failure."""
    try:
        document = {"cases": work()}
    except CandidateError as error:
        document = {"stage": error.stage, "error": str(error)}
    # json, not msgspec, as it has a form for NaN and infinities
    return json.dumps(msgspec.to_builtins(document)).encode()


class FreshProcessCheck:
    """Starts a case in a fresh process, to find candidates that keep state between calls.

    The process is forked before the candidate's first call in this one. Where the system cannot
    fork, the check is left out.
    """

    def __init__(self, candidate: LossCandidate, case: LossCase) -> None:
        self.candidate, self.case = candidate, case
        traced = partial(_trace_as_bytes, candidate, case)
        self._forked = _ForkedWork(traced, daemon=False) if _can_fork() else None

    def doubt(self) -> list[str]:
        """Say why the candidate's results cannot be trusted; empty if a run here gives the same."""
        if self._forked is None:
            return []
        written = self._forked.result()
        there = load(written) if written else {}
        here = _trace(self.candidate, self.case)
        if here.keys() != there.keys():
            return [f"case {self.case.id} ends differently alone in a fresh process"]
        differing = [name for name in here if not same_bits(here[name], there[name])]
        if not differing:
            return []
        return [
            f"case {self.case.id} differs at {differing[0]} when run alone in a fresh process: "
            "the candidate keeps state between calls"
        ]


def _trace_as_bytes(candidate: LossCandidate, case: LossCase) -> bytes:
    """Run a candidate on a case, and write its stage values down."""
    return save(_trace(candidate, case))


def _trace(candidate: LossCandidate, case: LossCase) -> dict[str, Tensor]:
    """Run a candidate on a case; of a failure there are no values."""
    try:
        trace = candidate.trace(case)
    except BrokenGradientError as error:
        trace = error.trace
    except (CandidateError, NotCoveredError):
        trace = {}
    return {
        name: value.clone(memory_format=torch.contiguous_format) for name, value in trace.items()
    }
