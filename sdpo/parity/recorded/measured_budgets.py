"""Budgets that are measured: how far the reference in float32 is from itself in float64.

The arithmetic of models and optimizers is outside the oracle. A value there may be some times as
far from the reference as that is from its float64 run, relative to the value's scale, plus a few
roundings.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sdpo.parity.cases.tensor_distances import float32_error, scale_of
from sdpo.parity.compare.comparison import Comparison, Expected, compare_numeric
from sdpo.parity.compare.improvements import EMPTY_BATCH
from sdpo.parity.compare.statuses import Status
from sdpo.parity.truth.oracle import array_of
from sdpo.parity.truth.tolerances import TOLERANCES
from sdpo.parity.truth.usable_budget import refusal, shows_a_factor_of_two


def budget_share(error: float, epsilon: float) -> float:
    """How far a value may be from the reference ÷ its scale, by the reference's float32 error."""
    return TOLERANCES.update_slack * error + TOLERANCES.update_roundings * epsilon / 2


def compare_measured(
    stage: str,
    case: str,
    expected: Tensor,
    truth: Tensor,
    actual: Tensor,
    *,
    error: float | None = None,
    excused: bool = False,
) -> Comparison:
    """Compare a value with the reference's, within a budget that is the same for every element.

    Within a budget that shows no factor of two nothing is said of the value: NOT_COVERED, with the
    reason.

    Args:
        stage: of the value.
        case: identifier of the case.
        expected: the reference's value.
        truth: the same in float64.
        actual: the candidate's value.
        error: of all values of this kind; by default that of this one.
        excused: whether 0 may stand for the reference's NaN, as in a micro-batch without tokens.
    """
    error = float32_error(expected, truth) if error is None else error
    epsilon, scale = torch.finfo(expected.dtype).eps, scale_of(truth)
    reference = array_of(expected)
    true = np.where(np.isnan(reference), 0.0, reference) if excused else reference
    bound = np.full(reference.shape, budget_share(error, epsilon) * scale)
    wanted = Expected(reference, true, bound, epsilon, {EMPTY_BATCH: excused})
    compared = compare_numeric(stage, case, array_of(actual), wanted)
    widest = float(wanted.allowed.max(initial=0.0))
    if compared.status != Status.PASS or shows_a_factor_of_two(widest, scale):
        return compared
    return replace(compared, status=Status.NOT_COVERED, note=refusal({"the value": widest / scale}))


def compare_all_measured(
    stage: str,
    case: str,
    expected: Mapping[str, Tensor],
    truth: Mapping[str, Tensor],
    actual: Mapping[str, Tensor],
) -> list[Comparison]:
    """Compare gradients or weights by name, with the largest error among them for all."""
    error = max((float32_error(value, truth[n]) for n, value in expected.items()), default=0.0)
    return [
        replace(compared, note=f"{name}: {compared.note}" if compared.note else "")
        for name, value in expected.items()
        for compared in [
            compare_measured(stage, case, value, truth[name], actual[name], error=error)
        ]
    ]
