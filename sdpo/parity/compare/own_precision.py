"""In which precision does a candidate compute? Measured, whatever dtype it returns.

The logits are moved along a short line inside one rounding step of a lower precision, student and
teacher in opposite directions. A program of the higher precision follows: its values lie on a
smooth curve. One that computes in the lower precision does not move, or moves in steps of its own
roundings. What the reference does on the same line is the control: where it does not follow
either, nothing is said, and a candidate follows if its steps are closer, in digits, to the
reference's than to the whole way.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdpo.parity.cases.checked_call import BrokenGradientError, CandidateError, NotCoveredError
from sdpo.parity.cases.loss_case import LossCase, transcription_trace
from sdpo.parity.compare.evaluated_case import Observation
from sdpo.parity.truth.error_bounds import unit_roundoff
from sdpo.parity.truth.oracle import Array, array_of
from sdpo.parity.truth.tolerances import TOLERANCES
from sdpo.settings.determinism import reseed

PLACES = (0, 2, 5, 7)
ACROSS = (-3, 7, -7, 3)
"""Weights of the values at `PLACES` that give zero on every quadratic curve.

The line is 7/16 of a rounding of the lower precision long, by `precision_line_fineness`.
"""

_SEED = 20260
_MOST_LOW = 3
"""Divergent float32 cases that are searched for half precision: a name, not a verdict."""

JUDGED_IN_FLOAT32 = "computes in float32, and is judged by float32's budgets"

_LOWER = {torch.float64: torch.float32, torch.float32: torch.bfloat16}
NAMES = {torch.float64: "float64", torch.float32: "float32", torch.bfloat16: "half precision"}

Trace = Callable[[LossCase], Mapping[str, Tensor]]


def line(case: LossCase, low: torch.dtype) -> list[LossCase]:
    """A case whose logits `low` can hold, and others that `low` rounds to the same."""
    step = unit_roundoff(low) / TOLERANCES.precision_line_fineness
    cases = []
    for place in PLACES:
        sides = [
            side.to(low).to(case.dtype) * (1 + sign * place * step)
            for side, sign in ((case.student_logits, 1), (case.teacher_logits, -1))
        ]
        moved = replace(case, student_logits=sides[0], teacher_logits=sides[1], recorded={})
        cases.append(moved)
    return cases


def steps(trace: Trace, cases: Sequence[LossCase]) -> dict[str, float]:
    """How far each value is from a smooth curve on a line of cases, ÷ the way it goes.

    Infinite for a value that does not move.

    Raises:
        CandidateError, BrokenGradientError, NotCoveredError: as the candidate's `trace`.
    """
    traces = []
    for case in cases:
        reseed(_SEED)
        traces.append(trace(case))
    return {
        name: step_of([array_of(trace_of_case[name]) for trace_of_case in traces])
        for name, value in traces[0].items()
        if value.is_floating_point() and name != "loss_mask"
    }


def step_of(values: Sequence[Array]) -> float:
    """How far four values `(…)` are from a quadratic curve ÷ the way from first to last."""
    stacked = np.stack(values)
    finite = np.isfinite(stacked).all(axis=0)
    with np.errstate(all="ignore"):
        bend = np.tensordot(np.array(ACROSS, dtype=float), stacked, axes=1)[finite]
        way = (stacked[-1] - stacked[0])[finite]
        scale = float(np.linalg.norm(ACROSS))
        size = np.linalg.norm(bend) / scale / np.linalg.norm(way) if way.any() else np.inf
    return float(size)


def follows(trace: Trace, case: LossCase, low: torch.dtype) -> dict[str, bool]:
    """Whether each value follows changes that `low` rounds away; what tells nothing is left out.

    The control computes in the precision above `low`.
    """
    high = next(dtype for dtype, below in _LOWER.items() if below == low)
    cases = line(case, low)
    control = steps(transcription_trace, [_in_dtype(moved, high) for moved in cases])
    way = PLACES[-1] * unit_roundoff(low) / TOLERANCES.precision_line_fineness
    least = torch.finfo(high).eps / way
    return {
        name: size <= max(control[name], least) ** 0.5
        for name, size in steps(trace, cases).items()
        if name in control and control[name] <= TOLERANCES.precision_control_step
    }


def _in_dtype(case: LossCase, dtype: torch.dtype) -> LossCase:
    """The case with its logits rounded to a dtype; what was recorded stays."""
    student, teacher = case.student_logits.to(dtype), case.teacher_logits.to(dtype)
    return replace(case, student_logits=student, teacher_logits=teacher)


def measured(trace: Trace, case: LossCase) -> dict[str, torch.dtype]:
    """The precision of each value of a candidate's trace on a case, as far as it can be told.

    Half precision is bfloat16 in the result, also where it is float16.
    """
    if case.dtype not in _LOWER:
        return {}
    precision = {}
    try:
        for name, moves in follows(trace, case, _LOWER[case.dtype]).items():
            precision[name] = case.dtype if moves else _LOWER[case.dtype]
        if torch.float32 in precision.values() and case.dtype == torch.float64:
            told = follows(trace, case, torch.bfloat16)
            for name in [n for n, dtype in precision.items() if dtype == torch.float32]:
                if name not in told:
                    del precision[name]  # float32 or less: no case for a name
                elif not told[name]:
                    precision[name] = torch.bfloat16
    except (BrokenGradientError, CandidateError, NotCoveredError):
        return {}
    return precision


def in_float32(precision: Mapping[str, torch.dtype]) -> bool:
    """Whether float32 is the highest precision of the values that could be measured.

    A value in half precision beside one in float32 departs by float32's budgets.
    """
    precisions = set(precision.values())
    return torch.float32 in precisions and torch.float64 not in precisions


@dataclass(frozen=True)
class ComputedPrecision:
    """What a candidate computes in less than it is given; `report_rows.PrecisionRow`."""

    given: str
    computes_in: str
    values: list[str]
    cases: int
    of: int
    judged_by: str


def precision_rows(
    observations: Sequence[Observation], trace: Trace | None = None
) -> list[ComputedPrecision]:
    """What the report says of a candidate that computes in less than it is given.

    Args:
        observations: of all loss cases.
        trace: runs the candidate on some float32 cases where it diverges; None leaves these out.

    Returns:
        A row for each dtype given, lower precision computed in and dtype whose budgets judge: which
        values (`aggregate`, `gradient`, …), in how many of the cases that were searched.
    """
    low = [o for o in observations if o.given == torch.float32 and o.diverges][:_MOST_LOW]
    told = [(o, measured(trace, o.evaluated.case)) for o in low] if trace is not None else []
    told += [(o, o.precision) for o in observations if o.given == torch.float64]
    by_dtypes: dict[tuple[Any, ...], list[Mapping[str, torch.dtype]]] = {}
    for o, precision in told:
        for dtype in dict.fromkeys(precision.values()):
            if dtype != o.given:
                by_dtypes.setdefault((o.given, dtype, o.evaluated.case.dtype), []).append(precision)
    return [
        ComputedPrecision(
            given=NAMES[given],
            computes_in=NAMES[dtype],
            values=list(dict.fromkeys(n for p in cases for n in p if p[n] == dtype)),
            cases=len(cases),
            of=sum(o.given == given for o, _ in told),
            judged_by=NAMES[judged],
        )
        for (given, dtype, judged), cases in by_dtypes.items()
    ]
