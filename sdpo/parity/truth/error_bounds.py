"""Error bounds of the loss stages: conditioning times unit roundoff, for each element.

Every input and every operation may be off by one rounding of the dtype; a bound adds up what each
of these roundings can do to the result, to first order, with the oracle's values as weights. Where
first order is not enough the whole interval is followed: the log of the tail and its limit.
docs/error_bounds.md derives each factor.

`u` is the unit roundoff, already times `loss_roundings`. `a`, `b`, `g`, `z` are the oracle's.
"""

from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
import torch

from sdpo.parity.truth import oracle
from sdpo.parity.truth.oracle import FLOAT64, Array, Token
from sdpo.parity.truth.tolerances import TOLERANCES

HALF_PRECISION = 2.0**-20


def unit_roundoff(dtype: torch.dtype) -> float:
    """Return the largest relative error of one rounding."""
    return torch.finfo(dtype).eps / 2


def underflow(dtype: torch.dtype) -> float:
    """Return the size below which results may be flushed to zero."""
    return min(torch.finfo(dtype).tiny, 2.0**-24)


def roundings_of_sum(count: int, u: float) -> float:
    """Return how many roundings a sum of `count` terms adds up: √n, the usual size for any order.

    Half precision is accumulated in float32 everywhere and rounded once.
    """
    return 1.0 if u > HALF_PRECISION else float(np.sqrt(count))


def sum_of_independent(errors: Array) -> Array:
    """Bound the sum of independent errors over the last axis, by three standard deviations."""
    size = np.abs(errors)
    deviation = np.sqrt((size**2).sum(axis=-1))
    return np.minimum(size.sum(axis=-1), TOLERANCES.loss_error_deviations * deviation)


def finite_or_zero(values: Array) -> Array:
    """Return values with 0 where they are not finite, as a log that a zero probability weighs."""
    return np.where(np.isfinite(values), values, 0)


@dataclass(frozen=True)
class LogProbs:
    """Log-probabilities of one side `(N, V)` with the bounds of their errors.

    `entry_error` `(N, V)` is independent from entry to entry; `token_error` `(N, 1)`, from the
    normalizer, is the same for all entries of a token. `u` is the unit roundoff of the side's
    dtype, in which all that depends on this side alone is computed.
    """

    value: Array
    entry_error: Array
    token_error: Array
    u: float

    @property
    def bound(self) -> Array:
        """Bound of each entry, `(N, V)`."""
        return np.where(np.isfinite(self.value), self.entry_error + self.token_error, 0)

    def rows(self, tokens: Array) -> "LogProbs":
        """Return the same of some tokens, by their numbers."""
        value, entry, token = self.value[tokens], self.entry_error[tokens], self.token_error[tokens]
        return LogProbs(value, entry, token, self.u)


def log_prob_bounds(z: Array, log_p: Array, divided: bool, u: float) -> LogProbs:
    """Bound `log p`: rounded logits, the sum of exponentials, its log, the difference.

    Args:
        z: `(N, V)`, logits ÷ temperature.
        log_p: `(N, V)`, the oracle's.
        divided: whether the temperature is another than 1.
        u: unit roundoff.
    """
    p = np.exp(log_p)
    below_largest = z - z.max(axis=-1, keepdims=True)
    of_division = 2 * u * np.abs(z) * divided
    normalizer = z - log_p
    finite = np.isfinite(log_p)
    of_exponents = np.where(finite, p * (of_division + u * np.abs(below_largest)), 0)
    average = sum_of_independent(of_exponents)[:, None]
    size = np.abs(np.where(finite, normalizer, 0)).max(axis=-1, keepdims=True)
    token_error = average + u * (roundings_of_sum(p.shape[-1], u) + 1 + size)
    entry_error = np.where(finite, of_division + 2 * u * np.abs(log_p), 0)
    return LogProbs(log_p, entry_error, token_error, u)


def largest_rounded(z: Array, log_p: Array) -> Array:
    """Return the largest number that is rounded on the way to a token's log-probs, `(N,)`.

    At least one, as the exponentials are.
    """
    on_the_way = np.stack([np.ones_like(log_p), log_p, z - log_p])
    return np.abs(finite_or_zero(on_the_way)).max(axis=(0, -1))


@dataclass(frozen=True)
class SupportBounds:
    """One side on the support `(N, V+1)`: logs, first-order errors, and the tail's interval.

    `entry_error` is independent from entry to entry, `token_error` `(N, 1)` the same for all; both
    leave the tail out. `tail` is `(N, 2)`: lowest and highest log of the tail; `tail_limited`
    `(N, 2)` tells at which of the two ends the smallest tail is in force.
    """

    log: Array
    entry_error: Array
    token_error: Array
    tail: Array
    tail_limited: Array

    @property
    def shared_error(self) -> Array:
        """The token's error at each entry but the tail, `(N, V+1)`."""
        last = self.log.shape[-1] - 1
        used = np.isfinite(self.log) & (np.arange(self.log.shape[-1]) < last)
        return np.where(used, self.token_error, 0)

    @property
    def bound(self) -> Array:
        """Bound of each entry but the tail, `(N, V+1)`."""
        return self.entry_error + self.shared_error

    @property
    def tail_bound(self) -> Array:
        """Largest distance of the tail's log from its value, `(N,)`."""
        return np.abs(self.tail - self.log[:, -1:]).max(axis=-1)


def support_bounds(
    log_on_support: Array, side: LogProbs, chosen: Array, mode: str
) -> SupportBounds:
    """Bound one side's log-probabilities on the support, tail or renormalisation included.

    Args:
        log_on_support: `(N, V+1)`, the oracle's, the tail last.
        side: over the vocabulary.
        chosen: `(N, V)`, the entries of the support.
        mode: of the case.
    """
    u = side.u
    inside = np.where(chosen, side.value, -np.inf)
    top = inside.max(axis=-1, keepdims=True, initial=-np.finfo(float).max)
    relative = np.exp(inside - finite_or_zero(top))
    mass = relative.sum(axis=-1)
    log_mass = np.minimum(top[:, 0] + np.log(mass), 0)
    # where no entry has any mass, none of them moves it
    share = np.where(mass[:, None] > 0, relative / mass[:, None], 0)
    of_entries = sum_of_independent(share * side.entry_error)
    count = int(chosen.sum(-1).max(initial=1))
    of_sum = u * (roundings_of_sum(count, u) + 1 + np.abs(finite_or_zero(log_mass)))
    entry_error = np.hstack([np.where(chosen, side.entry_error, 0), np.zeros((len(mass), 1))])
    no_tail = np.full((len(mass), 2), -np.inf), np.zeros((len(mass), 2), bool)
    if mode == "topk_renorm":
        log = finite_or_zero(log_on_support)
        entry_error = np.where(np.isfinite(log_on_support), entry_error + u * np.abs(log), 0)
        # the normalizer over the vocabulary cancels up to the rounding it caused
        return SupportBounds(log_on_support, entry_error, (of_entries + of_sum)[:, None], *no_tail)
    if mode == "full_vocab":
        return SupportBounds(log_on_support, entry_error, side.token_error, *no_tail)
    # exact log-mass from the tail itself: 1 - mass loses digits where the tail is small
    outside = np.where(chosen, 0, np.exp(side.value)).sum(axis=-1)
    exact_log_mass = np.where(outside > 0.5, log_mass, np.log1p(-np.minimum(outside, 1)))
    mass_bound = of_entries + side.token_error[:, 0] + of_sum
    tail, limited = tail_interval(exact_log_mass, mass_bound, u)
    return SupportBounds(log_on_support, entry_error, side.token_error, tail, limited)


def tail_interval(log_mass: Array, mass_bound: Array, u: float) -> tuple[Array, Array]:
    """Follow the interval of the log mass inside `(N,)` to that of the log of the tail, `(N, 2)`.

    Returns the lowest and highest log, and at which end the smallest tail is in force.
    """
    ends = np.stack([log_mass + mass_bound, log_mass - mass_bound], axis=-1)
    # the limit may be one of the log mass inside (the reference) or one of the mass left over: they
    # agree to first order, so that between 1 - exp(-1e-7) and 1e-7 either may be in force
    of_mass_left, of_log_mass = np.log1p(-oracle.SMALLEST_TAIL), -oracle.SMALLEST_TAIL
    limited = ends >= np.array([of_mass_left, of_log_mass])
    rest = -np.expm1(np.minimum(ends, of_log_mass))
    tail = np.log(np.maximum(rest, [0.0, oracle.SMALLEST_TAIL]))
    return tail + 2 * u * (1 + np.abs(tail)) * np.array([-1, 1]), limited


def divergence_bound(a: SupportBounds, b: SupportBounds, g: Array, alpha: float, u: float) -> Array:
    """Bound D `(N,)` to first order, the tail's own interval left out.

    `g` `(N, V+1)` is ∂D/∂log a; the slope by log b follows from the definition.
    """
    log_a, log_b = finite_or_zero(a.log), finite_or_zero(b.log)
    p_a, p_b = np.exp(a.log), np.exp(b.log)
    of_alpha: Array | float = 0.0
    if alpha == 0.0:
        slope_b, terms = p_b * (log_b - log_a + 1), p_b * (log_b - log_a)
        logs = p_b * (np.abs(log_a) + np.abs(log_b))
    elif alpha == 1.0:
        slope_b, terms = -p_a, p_a * (log_a - log_b)
        logs = p_a * (np.abs(log_a) + np.abs(log_b))
    else:
        log_m = finite_or_zero(oracle.mixture(a.log, b.log, alpha, FLOAT64))
        part_a, part_b = (1 - alpha) * p_a, alpha * p_b
        slope_b = part_b * (log_b - log_m)
        terms = np.abs(g) + np.abs(slope_b)
        logs = part_a * (np.abs(log_a) + 2 * np.abs(log_m) - np.log(1 - alpha))
        logs = logs + part_b * (np.abs(log_b) + 2 * np.abs(log_m) - np.log(alpha))
        logs = logs + part_a + part_b
        by_alpha = np.abs(p_a * (log_a - log_m) - p_b * (log_b - log_m)).sum(axis=-1)
        of_alpha = u * alpha * by_alpha
    count = int(np.isfinite(a.log).sum(-1).max(initial=1))
    of_entries = sum_of_independent(g * a.entry_error) + sum_of_independent(slope_b * b.entry_error)
    used = a.shared_error > 0
    of_token = np.abs(np.where(used, g, 0).sum(-1)) * a.token_error[:, 0]
    of_token = of_token + np.abs(np.where(used, slope_b, 0).sum(-1)) * b.token_error[:, 0]
    of_terms = sum_of_independent(u * logs + 4 * u * np.abs(terms))
    of_sum = u * roundings_of_sum(count, u) * np.abs(terms).sum(-1)
    return of_entries + of_token + (of_terms + of_sum) + of_alpha


def derivative_bound(
    g: Array,
    sides: tuple[SupportBounds, SupportBounds],
    alpha: float,
    errors: tuple[Array, Array],
    u: float,
) -> Array:
    """Bound g = ∂D/∂log a `(N, V+1)` to first order, for given errors of log a and log b."""
    (a, b), (error_a, error_b) = sides, errors
    of_difference = error_a + error_b
    if alpha == 0.0:
        return np.abs(g) * (of_difference + 4 * u)
    of_factor = np.abs(g) * (error_a + 4 * u)
    log_a, p_a = np.abs(finite_or_zero(a.log)), np.exp(a.log)
    if alpha == 1.0:
        logs = log_a + np.abs(finite_or_zero(b.log))
        return of_factor + p_a * (of_difference + u * (logs + 2))
    log_m = finite_or_zero(oracle.mixture(a.log, b.log, alpha, FLOAT64))
    teacher_part = alpha * np.exp(b.log - log_m)
    logs = log_a + np.abs(log_m)
    of_alpha = np.abs(g) * u * alpha / (1 - alpha)
    terms = (1 - alpha) * p_a * (teacher_part * of_difference + u * (logs + 2))
    return of_factor + of_alpha + terms


def tail_movement(a: SupportBounds, b: SupportBounds, alpha: float) -> tuple[Array, Array]:
    """How far the tail's interval moves D's tail term and its slope ∂D/∂tail, each `(N,)`.

    Where the smallest tail is in force at one end of the interval only, the slope may also vanish.
    """
    term, rate = _tail_term(a.log[:, -1], b.log[:, -1], alpha)
    moved_term, moved_rate = np.zeros_like(term), np.zeros_like(rate)
    for end_a, end_b in product(range(2), range(2)):
        other_term, other_rate = _tail_term(a.tail[:, end_a], b.tail[:, end_b], alpha)
        moved_term = np.maximum(moved_term, np.abs(other_term - term))
        moved_rate = np.maximum(moved_rate, np.abs(other_rate - rate))
    moved_rate = moved_rate + np.where(a.tail_limited.any(axis=-1), np.abs(rate), 0)
    return moved_term, np.where(a.tail_limited.all(axis=-1), 0, moved_rate)


def _tail_term(log_a: Array, log_b: Array, alpha: float) -> tuple[Array, Array]:
    terms, g = oracle.divergence_and_derivative(log_a[:, None], log_b[:, None], alpha, FLOAT64)
    return terms[:, 0], g[:, 0] / np.exp(log_a)


class Distribution(NamedTuple):
    """What a divergence of distributions is computed from: mode, alpha and unit roundoff."""

    mode: str
    alpha: float
    u: float


def slope_bound(
    token: Token, student: LogProbs, sides: tuple[SupportBounds, SupportBounds], of: Distribution
) -> Array:
    """Bound dD/dz `(N, V)`, z being logits ÷ temperature."""
    (a, b), u = sides, of.u
    p, p_a = np.exp(token.log_p), np.exp(a.log[:, :-1])
    direct = token.g[:, :-1]
    entry_errors, shared = (a.entry_error, b.entry_error), (a.shared_error, b.shared_error)
    independent = derivative_bound(token.g, sides, of.alpha, entry_errors, u)[:, :-1]
    common = derivative_bound(token.g, sides, of.alpha, shared, 0.0)[:, :-1]
    if of.mode == "topk_tail":
        unlimited = token.g[:, -1:] / np.exp(a.log[:, -1:])
        rate = np.where(token.tail_limited[:, :1], 0, unlimited)
        rate_error = tail_movement(a, b, of.alpha)[1][:, None] + 4 * u * np.abs(unlimited)
        direct = direct - p_a * rate
        independent = independent + p_a * np.abs(rate) * (a.entry_error[:, :-1] + 4 * u)
        common = common + p_a * (rate_error + np.abs(rate) * a.shared_error[:, :-1])
    operations = u * (2 + roundings_of_sum(int(token.chosen.sum(-1).max(initial=1)), u))
    total, size = direct.sum(-1, keepdims=True), np.abs(direct).sum(-1, keepdims=True)
    of_independent = sum_of_independent(independent)[:, None]
    total_error = of_independent + common.sum(-1, keepdims=True) + operations * size
    error = independent + common
    if of.mode == "topk_renorm":
        bound = error + p_a * (total_error + a.bound[:, :-1] * np.abs(total))
        bound = bound + operations * (np.abs(direct) + p_a * size)
        return bound + p * operations * (size + np.abs(total) + total_error)
    bound = error + p * (total_error + student.bound * np.abs(total))
    return bound + operations * (np.abs(direct) + p * size)


class DivergenceBounds(NamedTuple):
    """Both sides on the support, and the bounds of D `(N,)` and of dD/dz `(N, V)`."""

    sides: tuple[SupportBounds, SupportBounds]
    divergence: Array
    slope: Array


def distribution_bounds(
    token: Token, student: LogProbs, teacher: LogProbs, of: Distribution
) -> DivergenceBounds:
    """Bound what compares two distributions, on the support that the tokens have chosen."""
    a = support_bounds(token.log_a, student, token.chosen, of.mode)
    b = support_bounds(token.log_b, teacher, token.chosen, of.mode)
    bound = divergence_bound(a, b, token.g, of.alpha, of.u)
    if of.mode == "topk_tail":
        bound = bound + tail_movement(a, b, of.alpha)[0]
    return DivergenceBounds((a, b), bound, slope_bound(token, student, (a, b), of))


def sampled_bounds(token: Token, p_bound: Array, q_bound: Array, u: float) -> tuple[Array, Array]:
    """Bound D `(N,)` and dD/dz `(N, V)` in sampled-token mode."""
    at = token.chosen
    log_p, log_q = token.log_p[at], token.log_q[at]
    gap = np.abs(log_p - log_q)
    gap_bound = p_bound[at] + q_bound[at] + u * gap
    bound = gap_bound * np.abs(log_p) + gap * p_bound[at] + 2 * u * gap * np.abs(log_p)
    p = np.exp(token.log_p)
    direction = np.abs(at - p)
    slope = gap_bound[:, None] * direction
    return bound, slope + gap[:, None] * (p * p_bound + 4 * u * (direction + p))
