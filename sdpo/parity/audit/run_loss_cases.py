"""Runs a candidate on cases of the loss, and checks on the way that it agrees with itself."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sdpo.fixtures import GoldenFamily
from sdpo.parity.audit.forked_processes import FreshProcessCheck
from sdpo.parity.cases.checked_call import (
    BrokenGradientError,
    CandidateError,
    LossCandidate,
    NotCoveredError,
)
from sdpo.parity.cases.loss_case import LossCase, loss_cases
from sdpo.parity.compare.comparison import Comparison
from sdpo.parity.compare.evaluated_case import EvaluatedCase, Observation, evaluate_case
from sdpo.parity.compare.loss_stages import compare_loss, stage_of
from sdpo.parity.compare.nondeterminism import Scatter, scatter, withdrawn
from sdpo.parity.compare.own_precision import JUDGED_IN_FLOAT32, in_float32, measured
from sdpo.parity.compare.statuses import FAILING, Status
from sdpo.parity.compare.value_dtypes import other_dtypes
from sdpo.parity.compare.verdict import CaseResult
from sdpo.settings.determinism import reseed

SEEDS = (20260, 20261)
"""Every case runs under both of these global seeds."""


@dataclass
class LossCaseRun:
    """What a candidate did on one case of the loss.

    Attributes:
        result: the comparisons.
        doubts: why the candidate cannot be trusted; empty if its two runs agree.
        scatter: how far the two runs are apart, by value.
        observation: the values that were compared; None if there are none.
    """

    result: CaseResult
    doubts: list[str] = field(default_factory=list)
    scatter: Scatter = field(default_factory=dict)
    observation: Observation | None = None


@dataclass
class LossFindings:
    """What a candidate did on all cases of the loss."""

    results: list[CaseResult]
    doubts: list[str]
    observations: list[Observation]


def run_loss_family(
    candidate: LossCandidate,
    family: GoldenFamily,
    progress: Callable[[str, int, int], None],
    isolation: bool,
) -> LossFindings:
    """Run all loss cases of a family.

    Args:
        candidate: the implementation under test.
        family: the recorded cases.
        progress: told the family, the number of cases done and their total.
        isolation: also run the last two cases alone, each in a fresh process.
    """
    cases, runs = loss_cases(family), []
    checks = [FreshProcessCheck(candidate, case) for case in cases[-2:]] if isolation else []
    for number, case in enumerate(cases):
        progress(family.name, number, len(cases))
        runs.append(run_loss_case(candidate, case))
    results = withdrawn([run.result for run in runs], [run.scatter for run in runs])
    doubts = [doubt for run in runs for doubt in run.doubts]
    doubts += [doubt for check in checks for doubt in check.doubt()]
    progress(family.name, len(cases), len(cases))
    observations = [run.observation for run in runs if run.observation is not None]
    return LossFindings(results, doubts, observations)


def run_loss_case(candidate: LossCandidate, case: LossCase) -> LossCaseRun:
    """Run one case twice under different global seeds, and compare the first run.

    Values that differ between the two runs are a doubt, and are not compared.
    """
    run, complaint = LossCaseRun(CaseResult(case.id, "loss", case.tags)), ""
    comparisons = run.result.comparisons
    try:
        reseed(SEEDS[0])
        trace = candidate.trace(case)
        reseed(SEEDS[1])
        second_trace = candidate.trace(case)
    except NotCoveredError as error:
        run.result.note = str(error)
        return run
    except CandidateError as error:
        note = f"{error}; the reference computes this case"
        comparisons.append(Comparison(error.stage, Status.ERROR, case.id, note=note))
        return run
    except BrokenGradientError as error:
        trace = second_trace = error.trace
        complaint = str(error)
        comparisons.append(Comparison("gradient", Status.DIVERGENT, case.id, note=complaint))
    run.scatter = scatter(trace, second_trace)
    if run.scatter:
        run.result.note = f"two runs of case {case.id} differ at {next(iter(run.scatter))}"
        run.doubts.append(run.result.note)
        # what differs from itself has no value that could be compared
        trace = {name: value for name, value in trace.items() if name not in run.scatter}
    _compare(candidate, run, evaluate_case(case), trace, complaint)
    return run


def judge_loss_case(candidate: LossCandidate, case: LossCase) -> CaseResult:
    """Compare what a candidate does on one case of the loss."""
    return run_loss_case(candidate, case).result


def _compare(
    candidate: LossCandidate,
    run: LossCaseRun,
    evaluated: EvaluatedCase,
    trace: Mapping[str, Tensor],
    complaint: str,
) -> None:
    """Add the comparisons of a trace to a run, and what was observed.

    A candidate that computes in float32 whatever it is given is judged by float32's budgets.

    Args:
        candidate: the implementation under test.
        run: of the case.
        evaluated: the case with its truth and its reference.
        trace: the candidate's values.
        complaint: how its gradient is broken; empty if it is not.
    """
    case, precision = evaluated.case, {}
    compared = compare_loss(evaluated, trace)
    wrong_dtypes = other_dtypes(candidate, case.id, trace, evaluated.reference, stage_of)
    if case.dtype == torch.float64 and any(c.status == Status.DIVERGENT for c in compared):
        precision = measured(candidate.trace, case)
    if in_float32(precision):
        evaluated, run.result.note = evaluated.single, run.result.note or JUDGED_IN_FLOAT32
        compared = compare_loss(evaluated, trace)
    run.result.comparisons.extend([*compared, *wrong_dtypes])
    diverges, values = run.result.status in FAILING, evaluated.agreement.values_of(trace)
    run.observation = Observation(evaluated, diverges, values, complaint, case.dtype, precision)
