"""The choices among ties at one token: each one evaluated, and the one that a gradient shows.

Only the entries that may be chosen are looked at; all others together are one more entry, the rest.
Where there are few choices each is evaluated. Where there are many, interval arithmetic encloses
the divergence, and the choice behind a gradient is read off: dD/dz of an entry is one number if it
is in the support and another if it is not.
"""

from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np

from sdpo.parity.truth import error_bounds, oracle
from sdpo.parity.truth.error_bounds import Distribution, LogProbs
from sdpo.parity.truth.oracle import FLOAT64, Array, Token
from sdpo.parity.truth.topk_ties import Ties

_MOST_CHOICES = 64
_PASSES = 12
"""Of reading a choice off a gradient; each starts from the choice of the one before."""


@dataclass(frozen=True)
class OpenToken:
    """A token with more than one choice, over the `M` entries that may be chosen and the rest.

    `entries` `(M,)` are vocabulary ids; `sides` `(1, M+1)` the log-probs with their errors, the
    rest last; `ties` has the keys `(1, M)`; `of` has the case's mode, alpha and unit roundoff.
    """

    entries: Array
    sides: tuple[LogProbs, LogProbs]
    ties: Ties
    of: Distribution

    @property
    def log_p(self) -> Array:
        """`(M+1,)` of the student."""
        return self.sides[0].value[0]

    @property
    def log_q(self) -> Array:
        """`(M+1,)` of the teacher."""
        return self.sides[1].value[0]

    @property
    def certain(self) -> Array:
        """`(M,)`: the entries that each choice has."""
        return self.ties.certain[0]

    @property
    def to_choose(self) -> int:
        """How many of the open entries are chosen."""
        return self.ties.count - int(self.certain.sum())

    @property
    def too_many(self) -> bool:
        """Whether there are too many choices to look at each."""
        return comb(int((~self.certain).sum()), self.to_choose) > _MOST_CHOICES

    def choices_with(self, picks: list[Array]) -> Array:
        """Make choices `(C, M)` from the numbers of the open entries in each."""
        chosen = np.repeat(self.certain[None], len(picks), axis=0)
        for row, pick in enumerate(picks):
            chosen[row, pick] = True
        return chosen

    def choices(self) -> Array:
        """List each choice that a correct program may make, `(C, M)`; of too many, telling ones.

        Those are: for each open entry the choices with and without it, that give the teacher the
        most and the least mass.
        """
        undecided = np.flatnonzero(~self.certain)
        if not self.too_many:
            picks = [np.asarray(pick) for pick in combinations(undecided, self.to_choose)]
            every = self.choices_with(picks)
            return every[self.ties.admits(every)]
        picks = []
        for order in (np.argsort(self.log_q[undecided]), np.argsort(-self.log_q[undecided])):
            by_teacher = undecided[order]
            for entry in undecided:
                others = by_teacher[by_teacher != entry]
                picks += [others[: self.to_choose], np.append(others[: self.to_choose - 1], entry)]
        return self.choices_with(picks)

    def evaluate(self, chosen: Array) -> Token:
        """Evaluate the definition for choices `(C, M)`, over the entries and the rest."""
        count = len(chosen)
        student, teacher = (np.repeat(v[None], count, axis=0) for v in (self.log_p, self.log_q))
        chosen = np.hstack([chosen, np.zeros((count, 1), bool)])
        return oracle.evaluate_tokens(
            student, teacher, chosen, self.of.mode, self.of.alpha, FLOAT64
        )

    def divergences(self) -> tuple[float, float]:
        """Return the lowest and highest divergence of all choices, or an interval around them."""
        if self.too_many:
            return enclosed(self)
        values = self.evaluate(self.choices()).divergence
        return float(np.fmin.reduce(values)), float(np.fmax.reduce(values))

    def nearest(self, slope: Array, start: Array) -> Array:
        """Find the choice `(M,)` that a candidate's dD/dz is nearest to, if it keeps its budget.

        Where it keeps none, the one that it exceeds least.

        Args:
            slope: `(M+1,)` the candidate's dD/dz, that of the rest summed up.
            start: `(M,)` the reference's choice, kept where another is no nearer.
        """
        others = self.read_off(slope, start) if self.too_many else self.choices()
        tried = np.vstack([start[None], others])
        there = self.evaluate(tried)
        student, teacher = (side.rows(np.zeros(len(tried), int)) for side in self.sides)
        bounds = error_bounds.distribution_bounds(there, student, teacher, self.of)
        bound = bounds.slope + self.of.u * np.abs(there.slope)
        distance = error_bounds.finite_or_zero(np.abs(slope - there.slope)[:, :-1])
        used = np.where(distance > 0, distance / bound[:, :-1], 0).max(axis=-1)
        order = np.lexsort((np.linalg.norm(distance, axis=-1), np.maximum(used, 1)))
        return tried[order[0]]

    def read_off(self, slope: Array, start: Array) -> Array:
        """Read choices `(C, M)` off a slope, from several beginnings."""
        undecided = np.flatnonzero(~self.certain)
        by_teacher = undecided[np.argsort(self.log_q[undecided])]
        ends = [by_teacher[: self.to_choose], by_teacher[len(undecided) - self.to_choose :]]
        admissible = []
        for first in (start, *self.choices_with(ends)):
            chosen = first
            for number in range(_PASSES):
                sides = _slopes_in_and_out(self, chosen, slope if number == 0 else None)
                with np.errstate(all="ignore"):
                    inside, outside = (np.nan_to_num(np.abs(slope[:-1] - side)) for side in sides)
                score = outside - inside
                best = undecided[np.argsort(-score[undecided], kind="stable")][: self.to_choose]
                before, chosen = chosen, self.choices_with([best])[0]
                if (before == chosen).all():
                    break
            admissible.append(self.admissible(chosen))
        return np.array(admissible)

    def admissible(self, chosen: Array) -> Array:
        """Exchange entries, as few as are needed, until a correct program may make the choice."""
        chosen = chosen.copy()
        while not self.ties.admits(chosen[None])[0]:
            left_out = np.where(chosen, -np.inf, self.ties.lowest[0]).argmax()
            taken = np.where(chosen, self.ties.highest[0], np.inf).argmin()
            chosen[left_out], chosen[taken] = True, False
        return chosen


def open_token(
    ties: Ties, token: int, sides: tuple[LogProbs, LogProbs], of: Distribution
) -> OpenToken:
    """Take one token of a case, by its number."""
    possible = ties.possible[token]
    entries = np.flatnonzero(possible)
    student, teacher = (_with_rest(side, token, possible) for side in sides)
    return OpenToken(entries, (student, teacher), ties.of_token(token, entries), of)


def _with_rest(side: LogProbs, token: int, possible: Array) -> LogProbs:
    """Add up the probabilities of a token's entries that are not possible: log-probs `(1, M+1)`."""
    value, error = side.value[token], side.entry_error[token]
    rest = np.log(np.exp(value[~possible]).sum())
    largest = error[~possible].max(initial=0)
    return LogProbs(
        np.append(value[possible], rest)[None],
        np.append(error[possible], largest)[None],
        side.token_error[token : token + 1],
        side.u,
    )


def _slopes_in_and_out(token: OpenToken, chosen: Array, slope: Array | None) -> tuple[Array, Array]:
    """Predict dD/dz of each entry `(M,)` if it is in the support, and if not, beside a choice.

    With a candidate's `slope` `(M+1,)` the two numbers that all entries share, of the tail, are
    taken from it instead of from the choice, where the rest and the certain entries show them.
    """
    log_p, log_q, at = token.log_p[:-1], token.log_q[:-1], np.append(chosen, False)[None]
    log_a, limited = oracle.on_support(token.log_p[None], at, token.of.mode, FLOAT64)
    log_b, _ = oracle.on_support(token.log_q[None], at, token.of.mode, FLOAT64)
    first = int(np.flatnonzero(chosen)[0])
    log_a_all = log_p + (log_a[0, first] - log_p[first])
    log_b_all = log_q + (log_b[0, first] - log_q[first])
    _, g = oracle.divergence_and_derivative(log_a_all, log_b_all, token.of.alpha, FLOAT64)
    if token.of.mode == "topk_renorm":
        return g - np.exp(log_a_all) * g[chosen].sum(), np.zeros_like(g)
    p, p_rest = np.exp(log_p), np.exp(token.log_p[-1])
    _, g_tail = oracle.divergence_and_derivative(
        log_a[:, -1:], log_b[:, -1:], token.of.alpha, FLOAT64
    )
    rate = 0.0 if limited[0] else float(g_tail[0, 0] / np.exp(log_a[0, -1]))
    total = float((g - p * rate)[chosen].sum())
    if slope is not None and np.isfinite(slope).all():
        certain = token.certain
        if p_rest > p.min(initial=1.0):
            total = -float(slope[-1] / p_rest)
        if certain.any():
            fitted = (p * (g - slope[:-1]))[certain].sum() / (p**2)[certain].sum()
            rate = float(fitted) - total
    return g - p * (rate + total), -p * total


def enclosed(token: OpenToken) -> tuple[float, float]:
    """Enclose the divergences of all choices in an interval.

    The masses of the support, or of the tail, and with them each term, lie between those of the
    lightest and of the heaviest open entries; so do the sums of the terms.
    """
    certain, count = token.certain, token.to_choose
    sides, tails = [], []
    for log in (token.log_p, token.log_q):
        mass, rest = np.exp(log[:-1]), np.exp(log[-1])
        inside = mass[certain].sum() + _sums_of(mass[~certain], count)
        outside = rest + _sums_of(mass[~certain], int((~certain).sum()) - count)
        shift = np.log(inside)[::-1] if token.of.mode == "topk_renorm" else np.zeros(2)
        sides.append([log[:-1] - shift[0], log[:-1] - shift[1]])
        tails.append(np.log(np.maximum(outside, -np.expm1(-oracle.SMALLEST_TAIL))))
    (low_p, high_p), (low_q, high_q) = sides
    low, high = _term_limits(low_p, high_p, low_q, high_q, token.of.alpha)
    lowest = low[certain].sum() + _sums_of(low[~certain], count)[0]
    highest = high[certain].sum() + _sums_of(high[~certain], count)[1]
    if token.of.mode == "topk_tail":
        (low_p, high_p), (low_q, high_q) = (tail[:, None] for tail in tails)
        of_tail = _term_limits(low_p, high_p, low_q, high_q, token.of.alpha)
        lowest, highest = lowest + of_tail[0][0], highest + of_tail[1][0]
    return float(lowest), float(highest)


def _sums_of(values: Array, count: int) -> Array:
    """Return the least and the greatest sum of `count` of the values."""
    ordered = np.sort(values)
    return np.array([ordered[:count].sum(), ordered[len(ordered) - count :].sum()])


def _term_limits(
    low_a: Array, high_a: Array, low_b: Array, high_b: Array, alpha: float
) -> tuple[Array, Array]:
    """Return the least and the greatest term of D for log a and log b between limits, each `(M,)`.

    A term falls and then rises with either, if at all: it is greatest at a corner. It is least at a
    corner, or where the derivative by the probability outside the logarithm is zero, one below the
    other log; in the mixture form where both are equal.
    """
    corners = [(a, b) for a in (low_a, high_a) for b in (low_b, high_b)]
    inner = [
        (high_a, np.clip(high_a - 1, low_b, high_b)),
        (np.clip(high_b - 1, low_a, high_a), high_b),
        (np.clip(low_b, low_a, high_a), np.clip(low_a, low_b, high_b)),
    ]
    terms = [
        oracle.divergence_and_derivative(a, b, alpha, FLOAT64)[0] for a, b in (*corners, *inner)
    ]
    return np.fmin.reduce(terms), np.fmax.reduce(terms[:4])
