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

from sdpo.parity.truth import oracle
from sdpo.parity.truth.oracle import Array, Token
from sdpo.parity.truth.tolerances import TOLERANCES

HALF_PRECISION = 2.0**-20


def unit_roundoff(dtype: torch.dtype) -> float:
    """Largest relative error of one rounding."""
    return torch.finfo(dtype).eps / 2


def underflow(dtype: torch.dtype) -> float:
    """Size below which results may be flushed to zero."""
    return min(torch.finfo(dtype).tiny, 2.0**-24)


def growth(count: int, u: float) -> float:
    """Roundings that a sum of `count` terms may add up to: √n, the usual size for any order.

    Half precision is accumulated in float32 everywhere and rounded once.
    """
    return 1.0 if u > HALF_PRECISION else float(np.sqrt(count))


def together(errors: Array) -> Array:
    """What independent errors add up to over the last axis: three standard deviations."""
    size = np.abs(errors)
    deviation = np.sqrt((size**2).sum(axis=-1))
    return np.minimum(size.sum(axis=-1), TOLERANCES.loss_error_deviations * deviation)


@dataclass(frozen=True)
class LogProbs:
    """Log-probabilities of one side `(N, V)` with the bounds of their errors.

    `own` `(N, V)` is independent from entry to entry; `common` `(N, 1)`, from the normalizer, is
    the same for all entries of a token.
    """

    value: Array
    own: Array
    common: Array

    @property
    def bound(self) -> Array:
        """Bound of each entry, `(N, V)`."""
        return np.where(np.isfinite(self.value), self.own + self.common, 0)

    def of(self, tokens: Array) -> "LogProbs":
        """The same of some tokens, by their numbers."""
        return LogProbs(self.value[tokens], self.own[tokens], self.common[tokens])


def log_prob_bounds(scaled: Array, log_p: Array, divided: bool, u: float) -> LogProbs:
    """Errors of `log p`: rounded logits, the sum of exponentials, its log, the difference."""
    p = np.exp(log_p)
    below = scaled - scaled.max(axis=-1, keepdims=True)
    logit = 2 * u * np.abs(scaled) * divided
    normalizer = scaled - log_p
    finite = np.isfinite(log_p)
    average = together(np.where(finite, p * (logit + u * np.abs(below)), 0))[:, None]
    size = np.abs(np.where(finite, normalizer, 0)).max(axis=-1, keepdims=True)
    common = average + u * (growth(p.shape[-1], u) + 1 + size)
    return LogProbs(log_p, np.where(finite, logit + 2 * u * np.abs(log_p), 0), common)


def largest_rounded(scaled: Array, log_p: Array) -> Array:
    """The largest number that is rounded on the way to the log-probs of a token, `(N,)`.

    At least one, as the exponentials are.
    """
    on_the_way = np.stack([np.ones_like(log_p), log_p, scaled - log_p])
    return np.abs(np.where(np.isfinite(on_the_way), on_the_way, 0)).max(axis=(0, -1))


@dataclass(frozen=True)
class Entries:
    """One side on the support `(N, V+1)`: logs, first-order errors, and the tail's interval.

    `own` is independent from entry to entry, `common` `(N, 1)` shared by all; both leave the tail
    out. `tail` is `(N, 2)`: lowest and highest log of the tail; `limit` `(N, 2)` tells at which of
    the two ends the smallest tail is in force.
    """

    log: Array
    own: Array
    common: Array
    tail: Array
    limit: Array

    @property
    def bound(self) -> Array:
        """Bound of each entry but the tail, `(N, V+1)`."""
        return self.own + self.shared

    @property
    def shared(self) -> Array:
        """The common error at each entry but the tail, `(N, V+1)`."""
        used = np.isfinite(self.log) & (np.arange(self.log.shape[-1]) < self.log.shape[-1] - 1)
        return np.where(used, self.common, 0)


def entries(log_on: Array, side: LogProbs, chosen: Array, mode: str, u: float) -> Entries:
    """Bounds of one side's log-probabilities on the support, tail or renormalisation included."""
    inside = np.where(chosen, side.value, -np.inf)
    top = inside.max(axis=-1, keepdims=True, initial=-np.finfo(float).max)
    relative = np.exp(inside - top)
    mass = relative.sum(axis=-1)
    log_mass = np.minimum(top[:, 0] + np.log(mass), 0)
    spread = together(relative / mass[:, None] * side.own)
    count = int(chosen.sum(-1).max(initial=1))
    rounding = u * (growth(count, u) + 1 + np.abs(log_mass))
    mass_bound = spread + side.common[:, 0] + rounding
    own = np.hstack([np.where(chosen, side.own, 0), np.zeros((len(mass), 1))])
    nothing = np.full((len(mass), 2), -np.inf)
    never = np.zeros((len(mass), 2), bool)
    if mode == "topk_renorm":
        used = np.isfinite(log_on)
        own = np.where(used, own + u * np.abs(np.where(used, log_on, 0)), 0)
        # the normalizer over the vocabulary cancels up to the rounding it caused
        return Entries(log_on, own, (spread + rounding)[:, None], nothing, never)
    if mode == "full_vocab":
        return Entries(log_on, own, side.common, nothing, never)
    # exact log-mass from the tail itself: 1 - mass loses digits where the tail is small
    outside = np.where(chosen, 0, np.exp(side.value)).sum(axis=-1)
    centre = np.log1p(-np.minimum(outside, 1))
    centre = np.where(outside > 0.5, log_mass, centre)
    ends = np.stack([centre + mass_bound, centre - mass_bound], axis=-1)
    # the limit may be one of the log mass inside (the reference) or one of the mass left over: they
    # agree to first order, so that between 1 - exp(-1e-7) and 1e-7 either may be in force
    either, both = np.log1p(-oracle.SMALLEST_TAIL), -oracle.SMALLEST_TAIL
    limit = ends >= np.array([either, both])
    rest = -np.expm1(np.minimum(ends, both))
    tail = np.log(np.maximum(rest, [0.0, oracle.SMALLEST_TAIL]))
    tail = tail + 2 * u * (1 + np.abs(tail)) * np.array([-1, 1])
    return Entries(log_on, own, side.common, tail, limit)


def tail_bound(side: Entries) -> Array:
    """Largest distance of the tail's log from its value, `(N,)`."""
    return np.abs(side.tail - side.log[:, -1:]).max(axis=-1)


def zeroed(log_values: Array) -> Array:
    """Logs with 0 where they are `-inf`, to multiply with a zero probability."""
    return np.where(np.isfinite(log_values), log_values, 0)


def divergence_bound(a: Entries, b: Entries, g: Array, alpha: float, u: float) -> Array:
    """First-order bound of D `(N,)`, the tail's own interval left out.

    `g` `(N, V+1)` is ∂D/∂log a; the slope by log b follows from the definition.
    """
    log_a, log_b = zeroed(a.log), zeroed(b.log)
    pa, pb = np.exp(a.log), np.exp(b.log)
    log_m = zeroed(oracle.mixture(a.log, b.log, alpha, oracle.FLOAT64))
    if alpha == 0.0:
        by_b, terms = pb * (log_b - log_a + 1), pb * (log_b - log_a)
        sizes = pb * (np.abs(log_a) + np.abs(log_b))
    elif alpha == 1.0:
        by_b, terms = -pa, pa * (log_a - log_b)
        sizes = pa * (np.abs(log_a) + np.abs(log_b))
    else:
        wa, wb = (1 - alpha) * pa, alpha * pb
        by_b = wb * (log_b - log_m)
        terms = np.abs(g) + np.abs(by_b)
        sizes = wa * (np.abs(log_a) + 2 * np.abs(log_m) - np.log(1 - alpha))
        sizes = sizes + wb * (np.abs(log_b) + 2 * np.abs(log_m) - np.log(alpha)) + wa + wb
    count = int(np.isfinite(a.log).sum(-1).max(initial=1))
    propagated = together(g * a.own) + together(by_b * b.own)
    used = a.shared > 0
    common = np.abs(np.where(used, g, 0).sum(-1)) * a.common[:, 0]
    common = common + np.abs(np.where(used, by_b, 0).sum(-1)) * b.common[:, 0]
    rounding = together(u * sizes + 4 * u * np.abs(terms)) + u * growth(count, u) * np.abs(
        terms
    ).sum(-1)
    weight = u * alpha * np.abs(pa * (log_a - log_m) - pb * (log_b - log_m)).sum(axis=-1)
    return propagated + common + rounding + np.where(alpha in (0.0, 1.0), 0, weight)


def g_bound(
    g: Array, a: Entries, b: Entries, alpha: float, error_a: Array, error_b: Array, u: float
) -> Array:
    """First-order bound of g = ∂D/∂log a `(N, V+1)` for given errors of log a and log b."""
    both, pa = error_a + error_b, np.exp(a.log)
    if alpha == 0.0:
        return np.abs(g) * (both + 4 * u)
    own = np.abs(g) * (error_a + 4 * u)
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
    token: Token, p_side: LogProbs, a: Entries, b: Entries, mode: str, alpha: float, u: float
) -> Array:
    """Bound of dD/dz `(N, V)`, z being logits ÷ temperature."""
    p = np.exp(token.log_p)
    direct, weight = token.g[:, :-1], np.exp(a.log[:, :-1])
    own = g_bound(token.g, a, b, alpha, a.own, b.own, u)[:, :-1]
    common = g_bound(token.g, a, b, alpha, a.shared, b.shared, 0.0)[:, :-1]
    if mode == "topk_tail":
        limited = token.tail_limited[:, :1]
        whole = token.g[:, -1:] / np.exp(a.log[:, -1:])
        rate = np.where(limited, 0, whole)
        rate_error = tail_corners(a, b, alpha)[1][:, None] + 4 * u * np.abs(whole)
        direct = direct - weight * rate
        own = own + weight * np.abs(rate) * (a.own[:, :-1] + 4 * u)
        common = common + weight * (rate_error + np.abs(rate) * a.shared[:, :-1])
    ops = u * (2 + growth(int(token.chosen.sum(-1).max(initial=1)), u))
    total, size = direct.sum(-1, keepdims=True), np.abs(direct).sum(-1, keepdims=True)
    total_error = together(own)[:, None] + common.sum(-1, keepdims=True) + ops * size
    error = own + common
    if mode == "topk_renorm":
        bound = error + weight * (total_error + a.bound[:, :-1] * np.abs(total))
        bound = bound + ops * (np.abs(direct) + weight * size)
        return bound + p * ops * (size + np.abs(total) + total_error)
    bound = error + p * (total_error + p_side.bound * np.abs(total))
    return bound + ops * (np.abs(direct) + p * size)


def on_support(
    token: Token, p_side: LogProbs, q_side: LogProbs, mode: str, alpha: float, u: float
) -> tuple[dict[str, Entries], Array, Array]:
    """Both sides on the support with their bounds, and the bounds of D `(N,)`, dD/dz `(N, V)`."""
    a = entries(token.log_a, p_side, token.chosen, mode, u)
    b = entries(token.log_b, q_side, token.chosen, mode, u)
    d_bound = divergence_bound(a, b, token.g, alpha, u)
    if mode == "topk_tail":
        d_bound = d_bound + tail_corners(a, b, alpha)[0]
    slope = slope_bound(token, p_side, a, b, mode, alpha, u)
    return {"student": a, "teacher": b}, d_bound, slope


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
