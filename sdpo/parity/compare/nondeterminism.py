"""A candidate that differs from itself: how much, and which divergences that leaves.

Values that differ between two runs of a case are not compared. On other cases such a candidate may
happen to repeat itself; a departure there that is not clearly larger than its own scatter says
nothing about the loss.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from sdpo.parity.cases.checked_call import same_bits
from sdpo.parity.compare.comparison import Comparison
from sdpo.parity.compare.statuses import Status
from sdpo.parity.compare.verdict import CaseResult
from sdpo.parity.truth.oracle import array_of
from sdpo.parity.truth.tolerances import TOLERANCES

WITHDRAWN = "not larger than ten times what two runs of the candidate differ by"

Scatter = dict[str, float]


def scatter(trace: Mapping[str, Tensor], again: Mapping[str, Tensor]) -> Scatter:
    """The values that differ between two runs, with their largest difference ÷ largest value."""
    sizes: Scatter = {}
    for name in trace:
        if name not in again or same_bits(trace[name], again[name]):
            continue
        one, other = array_of(trace[name]), array_of(again[name])
        with np.errstate(all="ignore"):
            size = np.abs(np.nan_to_num(one, posinf=0.0, neginf=0.0)).max(initial=0.0)
            most = np.abs(one - other).max(initial=0.0) / size
        sizes[name] = float(np.nan_to_num(most, nan=np.inf))
    return sizes


def withdrawn(results: Sequence[CaseResult], scatters: Sequence[Scatter]) -> list[CaseResult]:
    """The results without divergences that the candidate's own scatter may be."""
    largest: Scatter = {}
    for sizes in scatters:
        for name, size in sizes.items():
            stage = name.split(".")[0]
            largest[stage] = max(largest.get(stage, 0.0), size)
    if not largest:
        return list(results)
    return [
        replace(result, comparisons=[believed(c, largest.get(c.stage)) for c in result.comparisons])
        for result in results
    ]


def believed(comparison: Comparison, of_itself: float | None) -> Comparison:
    """Keep a comparison, or withdraw a divergence that is within the scatter `of_itself`."""
    if comparison.status != Status.DIVERGENT or of_itself is None:
        return comparison
    withdrawn = Comparison(comparison.stage, Status.NOT_COVERED, comparison.case, note=WITHDRAWN)
    actual, expected = comparison.worst.get("actual"), comparison.worst.get("expected")
    if comparison.effect != "value" or actual is None or expected is None:
        return withdrawn
    room = TOLERANCES.self_difference_slack * of_itself * max(abs(actual), abs(expected))
    return comparison if abs(actual - expected) > room else withdrawn
