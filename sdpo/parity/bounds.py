"""Error bounds of the loss stages: conditioning times unit roundoff, for each element.

Every input and every operation may be off by one rounding of the dtype; a bound adds up what each
of these roundings can do to the result, to first order, with the oracle's values as weights. Where
first order is not enough the whole interval is followed: the log of the tail and its limit.

`u` is the unit roundoff, already times the calibrated constant of `budget.py`.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch

from sdpo.parity import oracle
from sdpo.parity.oracle import Array, Token


def unit_roundoff(dtype: torch.dtype) -> float:
    """Largest relative error of one rounding."""
    return torch.finfo(dtype).eps / 2


def underflow(dtype: torch.dtype) -> float:
    """Size below which results may be flushed to zero."""
    return min(torch.finfo(dtype).tiny, 2.0**-24)


def growth(count: int) -> float:
    """Roundings that a sum of `count` terms may add up to: √n, the usual size for any order."""
    return float(np.sqrt(count))


@dataclass(frozen=True)
class LogProbs:
    """Log-probabilities of one side with their bounds, `(N, V)`."""

    value: Array
    bound: Array


def log_prob_bounds(scaled: Array, log_p: Array, divided: bool, u: float) -> Array:
    """Bound of `log p`: the rounded logits, the sum of exponentials, its log, the difference."""
    p = np.exp(log_p)
    below = scaled - scaled.max(axis=-1, keepdims=True)
    logit = 2 * u * np.abs(scaled) * divided
    normalizer = scaled - log_p
    finite = np.isfinite(log_p)
    average = np.where(finite, p * (logit + u * np.abs(below)), 0).sum(axis=-1, keepdims=True)
    size = np.abs(np.where(finite, normalizer, 0)).max(axis=-1, keepdims=True)
    normalizer_bound = average + u * (growth(p.shape[-1]) + 1 + size)
    return np.where(finite, logit + normalizer_bound + 2 * u * np.abs(log_p), 0)


@dataclass(frozen=True)
class Entries:
    """One side on the support `(N, V+1)`: logs, first-order bounds, and the tail's interval.

    `tail` is `(N, 2)`: lowest and highest log of the tail; `limit` `(N, 2)` tells at which of the
    two ends the smallest tail is in force.
    """

    log: Array
    bound: Array
    tail: Array
    limit: Array


def entries(log_on: Array, side: LogProbs, chosen: Array, mode: str, u: float) -> Entries:
    """Bounds of one side's log-probabilities on the support, tail or renormalisation included."""
    inside = np.where(chosen, side.value, -np.inf)
    top = inside.max(axis=-1, keepdims=True, initial=-np.finfo(float).max)
    relative = np.exp(inside - top)
    mass = relative.sum(axis=-1)
    log_mass = np.minimum(top[:, 0] + np.log(mass), 0)
    spread = (relative / mass[:, None] * side.bound).sum(axis=-1)
    mass_bound = spread + u * (growth(int(chosen.sum(-1).max(initial=1))) + 1 + np.abs(log_mass))
    bound = np.hstack([np.where(chosen, side.bound, 0), np.zeros((len(mass), 1))])
    nothing = np.full((len(mass), 2), -np.inf)
    never = np.zeros((len(mass), 2), bool)
    if mode == "topk_renorm":
        used = np.isfinite(log_on)
        extra = mass_bound[:, None] + u * np.abs(np.where(used, log_on, 0))
        return Entries(log_on, np.where(used, bound + extra, 0), nothing, never)
    if mode == "full_vocab":
        return Entries(log_on, bound, nothing, never)
    # exact log-mass from the tail itself: 1 - mass loses digits where the tail is small
    outside = np.where(chosen, 0, np.exp(side.value)).sum(axis=-1)
    centre = np.log1p(-np.minimum(outside, 1))
    centre = np.where(outside > 0.5, log_mass, centre)
    ends = np.stack([centre + mass_bound, centre - mass_bound], axis=-1)
    limit = ends >= -oracle.SMALLEST_TAIL
    tail = np.log(-np.expm1(np.minimum(ends, -oracle.SMALLEST_TAIL)))
    rounding = 2 * u * (1 + np.abs(tail))
    return Entries(log_on, bound, tail + rounding * np.array([-1, 1]), limit)


def tail_bound(side: Entries) -> Array:
    """Largest distance of the tail's log from its value, `(N,)`."""
    return np.abs(side.tail - side.log[:, -1:]).max(axis=-1)


def zeroed(log_values: Array) -> Array:
    """Logs with 0 where they are `-inf`, to multiply with a zero probability."""
    return np.where(np.isfinite(log_values), log_values, 0)


def divergence_bound(a: Entries, b: Entries, alpha: float, u: float) -> Array:
    """First-order bound of D `(N,)`, the tail's own interval left out."""
    log_a, log_b = zeroed(a.log), zeroed(b.log)
    pa, pb = np.exp(a.log), np.exp(b.log)
    ops = u * (4 + growth(int(np.isfinite(a.log).sum(-1).max(initial=1))))
    if alpha in (0.0, 1.0):
        weight = pb if alpha == 0.0 else pa
        own, other = (b, a) if alpha == 0.0 else (a, b)
        gap = np.abs(log_a - log_b)
        first = weight * ((1 + gap) * own.bound + other.bound)
        rounding = weight * (ops * gap + u * (np.abs(log_a) + np.abs(log_b)))
        return (first + rounding).sum(axis=-1)
    log_m = zeroed(oracle.mixture(a.log, b.log, alpha, oracle.FLOAT64))
    wa, wb = (1 - alpha) * pa, alpha * pb
    gap_a, gap_b = np.abs(log_a - log_m), np.abs(log_b - log_m)
    first = wa * gap_a * a.bound + wb * gap_b * b.bound
    inside = wa * (np.abs(log_a) - np.log(1 - alpha)) + wb * (np.abs(log_b) - np.log(alpha))
    mixed = u * (inside + (wa + wb) * (1 + np.abs(log_m)))
    rounding = ops * (wa * gap_a + wb * gap_b) + u * (
        wa * (np.abs(log_a) + np.abs(log_m)) + wb * (np.abs(log_b) + np.abs(log_m))
    )
    weight_rounding = u * alpha * (pa * gap_a + pb * gap_b)
    return (first + mixed + rounding + weight_rounding).sum(axis=-1)


def g_bound(g: Array, a: Entries, b: Entries, alpha: float, u: float) -> Array:
    """First-order bound of g = ∂D/∂log a, `(N, V+1)`."""
    both, pa = a.bound + b.bound, np.exp(a.log)
    if alpha == 0.0:
        return np.abs(g) * (both + 4 * u)
    own = np.abs(g) * (a.bound + 4 * u)
    if alpha == 1.0:
        sizes = np.abs(zeroed(a.log)) + np.abs(zeroed(b.log))
        return own + pa * (both + u * (sizes + 2))
    log_m = oracle.mixture(a.log, b.log, alpha, oracle.FLOAT64)
    share = alpha * np.exp(b.log - zeroed(log_m))
    sizes = np.abs(zeroed(a.log)) + np.abs(zeroed(log_m))
    return own + (1 - alpha) * pa * (share * both + u * (sizes + 2))


def tail_corners(a: Entries, b: Entries, alpha: float) -> tuple[Array, Array]:
    """How far the tail's interval moves D's tail term and its slope ∂D/∂tail, each `(N,)`.

    Where the smallest tail is in force at one end of the interval only, the slope may also vanish.
    """
    term, rate = _tail_at(a.log[:, -1], b.log[:, -1], alpha)
    moved_term, moved_rate = np.zeros_like(term), np.zeros_like(rate)
    for low_a, low_b in product(range(2), range(2)):
        other_term, other_rate = _tail_at(a.tail[:, low_a], b.tail[:, low_b], alpha)
        moved_term = np.maximum(moved_term, np.abs(other_term - term))
        moved_rate = np.maximum(moved_rate, np.abs(other_rate - rate))
    moved_rate = moved_rate + np.where(a.limit.any(axis=-1), np.abs(rate), 0)
    return moved_term, np.where(a.limit.all(axis=-1), 0, moved_rate)


def _tail_at(log_a: Array, log_b: Array, alpha: float) -> tuple[Array, Array]:
    terms, g = oracle.divergence_and_derivative(
        log_a[:, None], log_b[:, None], alpha, oracle.FLOAT64
    )
    return terms[:, 0], g[:, 0] / np.exp(log_a)


def slope_bound(
    token: Token, log_p_bound: Array, a: Entries, b: Entries, mode: str, alpha: float, u: float
) -> Array:
    """Bound of dD/dz `(N, V)`, z being logits ÷ temperature."""
    p = np.exp(token.log_p)
    g, weight = token.g[:, :-1], np.exp(a.log[:, :-1])
    error = g_bound(token.g, a, b, alpha, u)[:, :-1]
    direct = g
    if mode == "topk_tail":
        limited = token.tail_limited[:, :1]
        whole = token.g[:, -1:] / np.exp(a.log[:, -1:])
        rate = np.where(limited, 0, whole)
        rate_error = tail_corners(a, b, alpha)[1][:, None] + 4 * u * np.abs(whole)
        direct = g - weight * rate
        error = error + weight * (rate_error + np.abs(rate) * (a.bound[:, :-1] + 4 * u))
    ops = u * (2 + growth(int(token.chosen.sum(-1).max(initial=1))))
    total, size = direct.sum(-1, keepdims=True), np.abs(direct).sum(-1, keepdims=True)
    total_error = error.sum(-1, keepdims=True) + ops * size
    if mode == "topk_renorm":
        bound = error + weight * (total_error + a.bound[:, :-1] * np.abs(total))
        bound = bound + ops * (np.abs(direct) + weight * size)
        return bound + p * ops * (size + np.abs(total) + total_error)
    return (
        error + p * (total_error + log_p_bound * np.abs(total)) + ops * (np.abs(direct) + p * size)
    )


def sampled_bounds(token: Token, p_bound: Array, q_bound: Array, u: float) -> tuple[Array, Array]:
    """Bounds of D `(N,)` and dD/dz `(N, V)` in sampled-token mode."""
    at = token.chosen
    log_p, log_q = token.log_p[at], token.log_q[at]
    gap = np.abs(log_p - log_q)
    gap_bound = p_bound[at] + q_bound[at] + u * gap
    d_bound = gap_bound * np.abs(log_p) + gap * p_bound[at] + 2 * u * gap * np.abs(log_p)
    p = np.exp(token.log_p)
    direction = np.abs(at - p)
    slope = gap_bound[:, None] * direction
    return d_bound, slope + gap[:, None] * (p * p_bound + 4 * u * (direction + p))
