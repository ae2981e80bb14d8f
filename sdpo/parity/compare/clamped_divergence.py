"""A divergence clamped at zero from below: a correct program whose gradient may vanish in places.

A KL divergence is not negative, and clamping it at zero changes nothing but rounding. Where
rounding makes it negative the clamp passes no gradient, so that a token whose divergence is within
rounding of zero may have the gradient zero; of the mixture form either of its two divergences may.
A clamp also passes nothing through NaN (D04 of `deviations.toml`). A token is judged by the one of
these gradients that it has, within the same budget; everything else stays, and a gradient that is
zero throughout never passes.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from torch import Tensor

from sdpo.parity.compare.comparison import Comparison, compare_numeric
from sdpo.parity.compare.evaluated_case import EvaluatedCase
from sdpo.parity.compare.improvements import UNDEFINED_LOSS, improvements
from sdpo.parity.compare.statuses import Status
from sdpo.parity.truth import error_bounds, oracle
from sdpo.parity.truth.oracle import FLOAT64, Array, Token, array_of


def with_clamps(
    comparison: Comparison, evaluated: EvaluatedCase, trace: Mapping[str, Tensor]
) -> Comparison:
    """A divergent gradient judged once more, by the gradients that a clamp at zero may leave.

    Half precision is left out: there bounds are wider than such gradients.

    Args:
        comparison: of the gradient.
        evaluated: what judges the case.
        trace: the candidate's values; one with a NaN loss may leave out tokens whose loss is NaN in
            the reference too, by a probability of zero.
    """
    case, truth = evaluated.case, evaluated.truth
    half = error_bounds.unit_roundoff(case.dtype) > error_bounds.HALF_PRECISION
    if (
        comparison.status != Status.DIVERGENT
        or comparison.effect != "value"
        or case.mode == "sampled"
        or half
    ):
        return comparison
    gradient, expected = array_of(trace["gradient"]), evaluated.expected("gradient")
    if gradient.shape != expected.truth.shape or not gradient.any():
        return comparison
    rows, room = gradient[truth.counts], expected.allowed[truth.counts]
    usual = np.array(expected.reference[truth.counts])
    with np.errstate(invalid="ignore"):
        departing = (np.abs(rows - usual) > room).any(axis=-1)
    near_zero = truth.values["divergence"] <= truth.bounds["divergence"]
    loss_is_nan = "aggregate" in trace and bool(trace["aggregate"].isnan())
    lost = departing & evaluated.zero_probability & loss_is_nan & ~rows.any(axis=-1)
    usual[lost] = 0.0
    for n in np.flatnonzero(departing & near_zero & ~lost):
        # several may be within the room; the comparison below has less, so the nearest counts
        distances = [(np.abs(rows[n] - choice), choice) for choice in choices(evaluated, int(n))]
        away, nearest = min(distances, key=lambda pair: pair[0].max())
        if (away <= room[n]).all():
            usual[n] = nearest
    by_clamp = np.array(expected.reference)
    by_clamp[truth.counts] = usual
    true = np.where(by_clamp == expected.reference, expected.truth, by_clamp)
    again = compare_numeric(
        comparison.stage,
        comparison.case,
        gradient,
        replace(expected, reference=by_clamp, truth=true),
    )
    if again.status not in (Status.MATCH, Status.PASS):
        return comparison
    if not lost.any():
        return replace(again, status=Status.PASS)
    note = improvements()[UNDEFINED_LOSS].note
    return replace(again, status=Status.DECLARED, effect=UNDEFINED_LOSS, note=note)


def choices(evaluated: EvaluatedCase, n: int) -> list[Array]:
    """The gradients `(V,)` of token `n` that a clamp may leave: nothing, or one part of two."""
    case, truth = evaluated.case, evaluated.truth
    nothing = np.zeros(truth.log_p.shape[-1])
    if case.config.alpha in (0.0, 1.0):
        return [nothing]
    token = _token_of(evaluated, n)
    own = _student_part(token, case.config.alpha)
    parts = [own, np.where(token.log_a != -np.inf, token.g - own, 0.0)]
    limited = token.tail_limited[:, 0]
    slopes = [
        oracle.slope_of(g, token.log_p, token.log_a, case.mode, limited, FLOAT64)[0] for g in parts
    ]
    return [nothing, *(truth.gradient_weight[n] * slope for slope in slopes)]


def _token_of(evaluated: EvaluatedCase, n: int) -> Token:
    """The oracle's values of token `n` on the reference's support."""
    case, truth = evaluated.case, evaluated.truth
    _, student, teacher = oracle.scaled_logits(case, FLOAT64)
    width = student.shape[-1]
    if "support.indices" in evaluated.reference:
        indices = evaluated.reference["support.indices"].numpy()[truth.counts][n : n + 1]
        chosen = oracle.marked(indices, width)
    else:
        chosen = np.ones((1, width), dtype=bool)
    at = slice(n, n + 1)
    return oracle.evaluate_tokens(
        student[at], teacher[at], chosen, case.mode, case.config.alpha, FLOAT64
    )


def _student_part(token: Token, alpha: float) -> Array:
    """The derivative of (1-alpha) KL(student‖m) by log a, `(N, V+1)`: its part of g."""
    log_m = oracle.mixture(token.log_a, token.log_b, alpha, FLOAT64)
    with np.errstate(invalid="ignore"):
        own = np.exp(token.log_a)
        through_mixture = np.exp(2 * token.log_a - log_m)
        terms = own * (token.log_a - log_m + 1) - (1 - alpha) * through_mixture
    return np.where(token.log_a != -np.inf, (1 - alpha) * terms, 0.0)
