"""What a comparison can tell on this machine, by measurement: steps against their own rounding.

Two programs that compute the same add in another order, and so do two processors. A comparison of
two trainings tells something only where the step is many roundings of its own parts: of the
log-probs whose difference drives it, and of the weights that it is added to. Otherwise the test
needs larger weights or rates; it is an error of the test, never a reason to leave it out.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sdpo.parity.distances import norms
from sdpo.parity.update_family import SLACK


class Gap(NamedTuple):
    """Root mean squares over tokens that count: of the log-probs' difference, and their size."""

    difference: float
    size: float
    epsilon: float


def gap_of(student: Tensor, teacher: Tensor, counts: Tensor) -> Gap:
    """How far student and teacher are apart.

    Args:
        student: logits `(B, T, V)`.
        teacher: the same.
        counts: `(B, T)` bool, the tokens that the loss counts.
    """
    sides = [logits[counts].double().log_softmax(-1) for logits in (student, teacher)]
    weight = sides[1].exp()
    difference, size = (
        float((weight * value.square()).sum(-1).mean().sqrt())
        for value in (sides[0] - sides[1], sides[1])
    )
    return Gap(difference, size, torch.finfo(student.dtype).eps)


def rounding_of(
    gaps: Sequence[Gap],
    before: Mapping[str, Tensor] | None = None,
    after: Mapping[str, Tensor] | None = None,
) -> float:
    """How much of a step may be rounding, relative to the step.

    A log-prob is rounded by half a unit, and so is its difference to the other side's; a weight
    is rounded by half a unit wherever it lands.

    Args:
        gaps: of all updates; the smallest difference decides.
        before: the weights before, None for a step that is a gradient.
        after: the weights after.
    """
    parts = [gap.epsilon * gap.size / gap.difference if gap.difference else math.inf for gap in gaps]
    found = max(parts, default=math.inf)
    if before is None or after is None:
        return found
    way, size = norms((after, before), ((0, 1), (0, None)))
    epsilon = max(torch.finfo(weight.dtype).eps for weight in after.values())
    return math.hypot(found, epsilon / 2 * size / way) if way else math.inf


def assert_telling(rounding: float, tolerance: float) -> None:
    """That a tolerance is several times what rounding may do, both relative to a step.

    Raises:
        AssertionError: it is not, so that the comparison would be one of roundings.
    """
    assert SLACK * rounding <= tolerance, (
        f"the step is {1 / rounding:.3g} times its own rounding, too little to be compared within "
        f"{tolerance:g}: give the model larger weights, or the optimizer a larger rate"
    )
