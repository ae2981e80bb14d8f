"""How far a value of half precision may be from the definition as a whole, in its norm.

Bounds of single elements add up the worst that each rounding can do. In bfloat16 that is often more
than the value itself, so that a gradient of the wrong size or direction would pass them. Errors of
many elements do not all go the same way: the distance of the whole tensor from the oracle hardly
depends on the order of operations, and the reference's own distance measures it.

A correct evaluation stays within `norm_slack` times the larger of the reference's distance and of
what a few roundings make, besides the distance between choices among ties. These numbers were
fixed by correct programs, of which none may use more than half. Where values are as small as a few
roundings of their natural scale the rule says nothing; in float32 and
float64 the bounds of the elements are the sharper ones.
"""

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from sdpo.parity.cases.loss_case import LossCase
from sdpo.parity.truth import error_bounds, oracle
from sdpo.parity.truth.budget import Truth
from sdpo.parity.truth.oracle import Array, array_of
from sdpo.parity.truth.tolerances import TOLERANCES


@np.errstate(invalid="ignore")  # what is infinite has no limit
def norm_limit(
    name: str, case: LossCase, truth: Truth, reference: Mapping[str, Tensor]
) -> float | None:
    """Limit a value's distance from the oracle in the norm; None where the rule does not apply.

    Args:
        name: `divergence` or `importance` (over the tokens that count), `aggregate`, `gradient`.
        case: the inputs.
        truth: oracle values of the case.
        reference: stage values of the reference.
    """
    u = error_bounds.unit_roundoff(case.coarsest_dtype)
    # of fewer values the distance is no average, and the reference may be right by chance
    fewest = 1 if name == "gradient" else TOLERANCES.norm_fewest_tokens
    if u <= error_bounds.HALF_PRECISION or truth.counts.sum() < fewest:
        return None
    of_divergence, of_slope = _natural_scales(case, truth)
    if name == "aggregate":
        mask = array_of(case.loss_mask)
        in_mean = oracle.aggregation_weights(mask, case.config.loss_agg_mode)[truth.counts]
        value = in_mean * truth.values["importance"]
        error = in_mean * _distance_of(reference["importance"], truth, truth.values["importance"])
        scales = in_mean * truth.token_weight * of_divergence
        size, distance, unit = (np.abs(v).sum() for v in (value, error, scales))
        of_choice = float((in_mean * truth.token_weight * truth.tie_spread).sum())
    else:
        value = truth.values[name][truth.counts] if name == "gradient" else truth.values[name]
        scales = {
            "divergence": of_divergence,
            "importance": truth.token_weight * of_divergence,
            "gradient": truth.gradient_weight * of_slope,
        }[name]
        error = _distance_of(reference[name], truth, value)
        size, distance, unit = (float(np.linalg.norm(v)) for v in (value, error, scales))
        spread = {
            "divergence": truth.tie_spread,
            "importance": truth.token_weight * truth.tie_spread,
        }
        of_choice = float(np.linalg.norm(spread.get(name, 0.0)))
    if not np.isfinite(size + distance + unit) or size <= TOLERANCES.norm_least_size * u * unit:
        return None
    of_scale = (
        TOLERANCES.norm_roundings_of_gradient
        if name == "gradient"
        else TOLERANCES.norm_roundings_of_divergence
    )
    few = max(TOLERANCES.norm_roundings_of_value * size, of_scale * unit)
    return float(TOLERANCES.norm_slack * max(distance, u * few)) + of_choice


def _natural_scales(case: LossCase, truth: Truth) -> tuple[Array, Array]:
    """Tell how many roundings of one a rounding of the log-probs is, in D and dD/dz, each `(N,)`.

    Over a support, D compares log-probs by probabilities: its roundings are those of one. At
    alpha above 0 the gradient is p · (log-ratio - D), which a rounding of D moves by D roundings.
    The surrogate of sampled-token mode, (log p - log q) log p, has no such factor: log-probs are
    rounded as the logits and the normalizer that they are the difference of.
    """
    size = np.abs(truth.values["divergence"])
    if case.mode != "sampled":
        return np.ones_like(size), np.maximum(1.0, size)
    of_p, of_q = truth.largest_rounded.T
    log_p = np.abs(truth.values["log_probs.student"])
    gap = np.abs(truth.values["log_probs.student"] - truth.values["log_probs.teacher"])
    p = np.exp(truth.log_p)
    sampled = oracle.marked(case.responses.numpy()[truth.counts][:, None], p.shape[-1])
    direction, p = (np.linalg.norm(v, axis=-1) for v in (sampled - p, p))
    of_gap = of_p + of_q
    return of_gap * log_p + gap * of_p, of_gap * direction + gap * of_p * p


def _distance_of(value: Tensor, truth: Truth, true: Array) -> Array:
    """The reference's distance from the oracle at the tokens that count; zero where it is NaN.

    A documented improvement may be finite there, and is then judged as a whole all the same.
    """
    error = array_of(value)[truth.counts] - true
    return np.where(np.isnan(error) & np.isfinite(true), 0.0, error)


def size_and_direction(actual: Array, truth: Array) -> str:
    """Compare a gradient with the oracle's, for a note: ratio of the norms and cosine."""
    finite = np.isfinite(actual) & np.isfinite(truth)
    a, t = actual[finite], truth[finite]
    norms = float(np.linalg.norm(a)), float(np.linalg.norm(t))
    if not (all(norms) and np.isfinite(norms).all()):
        return ""
    cosine = float((a / norms[0]) @ (t / norms[1]))
    return f"norm × {norms[0] / norms[1]:.3g}, cosine {cosine:.3g}"
