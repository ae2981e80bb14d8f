"""What a comparison can tell on this machine, by measurement: of two steps, and of recorded bits.

Two programs that compute the same add in another order, and so do two processors. A comparison of
two trainings tells something only where the step is many roundings of its own parts: of the
log-probs whose difference drives it, and of the weights that it is added to. Otherwise the test
needs larger weights or rates; it is an error of the test, never a reason to leave it out.

The bits of a recording can be asked of a program only where the products, exponentials and sums of
this machine give them: a canary, the same arithmetic without the program under test, is compared
with the recording (`tests/helpers/recorded/canaries.py`). Where it has other bits, the budget is
asked for.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sdpo.parity.cases.checked_call import same_bits
from sdpo.parity.cases.tensor_distances import distance, norms
from sdpo.parity.truth.tolerances import TOLERANCES

TELLING = 1e-3
"""The share of a step that a comparison may leave open; faults move steps by far more."""


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
    parts = [
        gap.epsilon * gap.size / gap.difference if gap.difference else math.inf for gap in gaps
    ]
    found = max(parts, default=math.inf)
    if before is None or after is None:
        return found
    way, size = norms((after, before), ((0, 1), (0, None)))
    epsilon = max(torch.finfo(weight.dtype).eps for weight in after.values())
    return math.hypot(found, epsilon / 2 * size / way) if way else math.inf


def alike(
    actual: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    rounding: float,
    before: Mapping[str, Tensor] | None = None,
) -> bool:
    """Whether two steps are the same within a few times what rounding may make of them.

    Args:
        actual: gradients, or weights after.
        expected: the same.
        rounding: of the expected step, by `rounding_of`.
        before: the weights before, None for gradients.

    Raises:
        AssertionError: rounding may be so much of the step that a fault would not show.
    """
    assert TOLERANCES.update_slack * rounding <= TELLING, (
        f"the step is {1 / rounding:.3g} times its own rounding, too little to compare it: give "
        "the model larger weights, or the optimizer a larger rate"
    )
    return distance(actual, expected, before) <= TOLERANCES.update_slack * rounding


def gives_bits(canary: Mapping[str, Tensor], recorded: Mapping[str, Tensor]) -> bool:
    """Whether a canary has the recording's bits, in all values that both have.

    Raises:
        AssertionError: they have none in common, so that nothing was measured.
    """
    names = [name for name in canary if name in recorded]
    assert names, "a canary needs values that were recorded"
    return all(same_bits(canary[name], recorded[name]) for name in names)
