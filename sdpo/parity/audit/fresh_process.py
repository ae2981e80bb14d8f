"""A case run alone in a fresh process, to find candidates that keep state between calls."""

import multiprocessing
import tempfile
from typing import IO

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


class Alone:
    """Starts a case in a child process at once; `doubt` compares with a run in this process.

    The child is forked before the candidate's first call here. Where the system cannot fork, the
    check is left out and `doubt` says so.
    """

    def __init__(self, candidate: LossCandidate, case: LossCase) -> None:
        self.candidate, self.case = candidate, case
        # without a name, so that nothing is left if a candidate ends this process
        self.file = tempfile.TemporaryFile()  # noqa: SIM115 - `doubt` closes it
        self.process = None
        if "fork" in multiprocessing.get_all_start_methods():
            context = multiprocessing.get_context("fork")
            self.process = context.Process(target=_run, args=(candidate, case, self.file))
            self.process.start()

    def doubt(self) -> list[str]:
        """Why the candidate's results cannot be trusted; empty if the two runs agree."""
        if self.process is None:
            return []
        self.process.join()
        here = _trace(self.candidate, self.case)
        with self.file:
            self.file.seek(0)
            written = self.file.read()
        there = load(written) if written else {}
        if here.keys() != there.keys():
            return [f"case {self.case.id} ends differently alone in a fresh process"]
        differing = [name for name in here if not same_bits(here[name], there[name])]
        if not differing:
            return []
        return [
            f"case {self.case.id} differs at {differing[0]} when run alone in a fresh process: "
            "the candidate keeps state between calls"
        ]


def _run(candidate: LossCandidate, case: LossCase, file: IO[bytes]) -> None:
    file.write(save(_trace(candidate, case)))
    file.flush()


def _trace(candidate: LossCandidate, case: LossCase) -> dict[str, Tensor]:
    try:
        trace = candidate.trace(case)
    except BrokenGradientError as error:
        trace = error.trace
    except (CandidateError, NotCoveredError):
        trace = {}
    return {
        name: value.clone(memory_format=torch.contiguous_format) for name, value in trace.items()
    }
