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
    found: Scatter = {}
    for name in trace:
        if name not in again or same_bits(trace[name], again[name]):
            continue
        one, other = array_of(trace[name]), array_of(again[name])
        with np.errstate(all="ignore"):
            size = np.abs(np.nan_to_num(one, posinf=0.0, neginf=0.0)).max(initial=0.0)
            most = np.abs(one - other).max(initial=0.0) / size
        found[name] = float(np.nan_to_num(most, nan=np.inf))
    return found


def withdrawn(results: Sequence[CaseResult], scatters: Sequence[Scatter]) -> list[CaseResult]:
    """The results without divergences that the candidate's own scatter may be."""
    largest: Scatter = {}
    for found in scatters:
        for name, size in found.items():
            stage = name.split(".")[0]
            largest[stage] = max(largest.get(stage, 0.0), size)
    if not largest:
        return list(results)
    return [
        replace(result, comparisons=[believed(c, largest.get(c.stage)) for c in result.comparisons])
        for result in results
    ]


def believed(found: Comparison, own: float | None) -> Comparison:
    """A comparison, or NOT_COVERED in place of a divergence that is within the scatter `own`."""
    if found.status != Status.DIVERGENT or own is None:
        return found
    withdrawn = Comparison(found.stage, Status.NOT_COVERED, found.case, note=WITHDRAWN)
    actual, expected = found.worst.get("actual"), found.worst.get("expected")
    if found.effect != "value" or actual is None or expected is None:
        return withdrawn
    room = TOLERANCES.self_difference_slack * own * max(abs(actual), abs(expected))
    return found if abs(actual - expected) > room else withdrawn
