"""Work in forked processes: a case alone in a fresh one, recorded updates beside the audit."""

import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import IO, Any

import msgspec
import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from sdpo.fixtures.loader import DTYPES
from sdpo.parity.candidates.loss_functions import LossFunction
from sdpo.parity.capabilities.absent_settings import Assumed
from sdpo.parity.capabilities.reach import Reach
from sdpo.parity.cases.checked_call import (
    BrokenGradientError,
    CandidateError,
    LossCandidate,
    NotCoveredError,
    same_bits,
)
from sdpo.parity.cases.loss_case import LossCase
from sdpo.parity.compare.evaluated_case import Observation, evaluate_case
from sdpo.parity.compare.own_precision import in_float32
from sdpo.parity.compare.verdict import CaseResult
from sdpo.parity.explain.one_setting_only import named
from sdpo.parity.generated_runs.run_generated import GeneratedRun

_LENGTH = 8
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


class ForkedGenerated:
    """Starts generated cases in a forked process, beside the recorded ones."""

    def __init__(self, work: Callable[[], GeneratedRun], cases: Iterable[LossCase]) -> None:
        self._cases = {case.id: case for case in cases}
        self._forked = _ForkedWork(partial(_generated_as_bytes, work), daemon=False)

    def run(self) -> GeneratedRun:
        """Wait for the run, which is what it would be here.

        Raises:
            CandidateError: the candidate ended the process.
        """
        written = self._forked.result()
        if not written:
            code = self._forked.exit_code
            message = f"ended its process with exit code {code} on a generated case"
            raise CandidateError("aggregate", message)
        length = int.from_bytes(written[:_LENGTH], "big")
        document = json.loads(written[_LENGTH : _LENGTH + length])
        tensors = load(written[_LENGTH + length :])
        return GeneratedRun(
            msgspec.convert(document["results"], list[CaseResult]),
            document["doubts"],
            [
                self._observation(row, number, tensors)
                for number, row in enumerate(document["observations"])
            ],
            document["notes"],
        )

    def _observation(
        self, row: Mapping[str, Any], number: int, tensors: Mapping[str, Tensor]
    ) -> Observation:
        """Make an observation again, on the same case of this process."""
        evaluated = evaluate_case(self._cases[row["case"]])
        precision = {name: DTYPES[dtype] for name, dtype in row["precision"].items()}
        return Observation(
            evaluated.single if in_float32(precision) else evaluated,
            row["diverges"],
            {name: tensors[f"{number}.{name}"].numpy() for name in row["values"]},
            row["complaint"],
            DTYPES[row["given"]],
            precision,
        )


def _generated_as_bytes(work: Callable[[], GeneratedRun]) -> bytes:
    """Do the work, and write down what it found: JSON with its length before it, then tensors."""
    run, tensors = work(), {}
    for number, observation in enumerate(run.observations):
        for name, value in observation.values.items():
            tensors[f"{number}.{name}"] = torch.from_numpy(np.array(value, order="C"))
    document = {
        "results": msgspec.to_builtins(run.results),
        "doubts": run.doubts,
        "notes": run.notes,
        "observations": [
            {
                "case": observation.evaluated.case.id,
                "diverges": observation.diverges,
                "values": list(observation.values),
                "complaint": observation.complaint,
                "given": named(observation.given),
                "precision": {n: named(dtype) for n, dtype in observation.precision.items()},
            }
            for observation in run.observations
        ],
    }
    text = json.dumps(document).encode()
    return len(text).to_bytes(_LENGTH, "big") + text + save(tensors)


def try_out(candidate: LossFunction) -> None:
    """Find out what a loss takes in a forked process, so that it was not yet called in this one.

    Where the system cannot fork, or the process ends, it is found out here as soon as it is asked.
    """
    if not _can_fork():
        return
    if written := _ForkedWork(partial(_found_as_json, candidate), daemon=False).result():
        found = msgspec.json.decode(written, type=_Found)
        candidate.assumed = found.assumed
        candidate.never_none = found.never_none
        candidate.reach = found.reach
        candidate.hung = found.hung


class _Found(msgspec.Struct):
    """What was found out of a loss, for the process that asked."""

    assumed: Assumed
    never_none: frozenset[str]
    reach: Reach | None
    hung: int


def _found_as_json(candidate: LossFunction) -> bytes:
    """Find out what a loss takes, and write it down."""
    found = (candidate.assumed, candidate.never_none, candidate.reach)
    return msgspec.json.encode(_Found(*found, candidate.hung))


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
