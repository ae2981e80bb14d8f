"""Budgets: how far a correct evaluation may be from the definition, element by element.

`truth` evaluates the oracle on a case and bounds each stage (`error_bounds.py`). Switch points
admit both branches within rounding: the tail's limit, the ratio's cap, and the choice among entries
that tie at the edge of the top-k (`topk_ties.py`).

Unit roundoff is taken `loss_roundings` times. That was fixed by running correct evaluation orders
that differ in summation order, in the form of the expressions and in compilation
(`tests/parity/truth/test_budget.py` repeats that): none may use more than half of a budget.
"""

from dataclasses import dataclass, field

import numpy as np

from sdpo.parity.cases.loss_case import LossCase
from sdpo.parity.truth import error_bounds as bounds
from sdpo.parity.truth import oracle
from sdpo.parity.truth.error_bounds import LogProbs
from sdpo.parity.truth.oracle import Array, Token
from sdpo.parity.truth.tie_choices import OpenToken, open_token
from sdpo.parity.truth.tolerances import TOLERANCES
from sdpo.parity.truth.topk_ties import Ties, settled, ties_of


@dataclass
class Truth:
    """Oracle values and budgets of a loss case, keyed by stage, as float64 arrays.

    Per-token values are `(N, …)` for the tokens that count, in row-major order of `counts`
    `(B, T)`; `aggregate` is a scalar and `gradient` `(B, T, V)`. `log_p`, `log_q` and, with their
    bounds, `sides` cover the vocabulary; `ties` tells which entries must and may be in the support,
    and `spread` `(N,)` is the part of the divergence's bound that other choices among them take.
    `weight` `(N,)` is ratio times rollout weight, `share` that times the weight in the gradient,
    and `rounded` `(N, 2)` the largest number on the way to a token's log-probs of student and
    teacher. `unit` is the natural scale of the gradient: of the largest share, which in
    sampled-token mode multiplies a difference of log-probs.
    """

    counts: Array
    values: dict[str, Array]
    bounds: dict[str, Array]
    log_p: Array
    log_q: Array
    sides: tuple[LogProbs, LogProbs]
    ties: Ties
    spread: Array = field(default_factory=lambda: np.zeros(0))
    unit: float = 0.0
    weight: Array = field(default_factory=lambda: np.zeros(0))
    share: Array = field(default_factory=lambda: np.zeros(0))
    rounded: Array = field(default_factory=lambda: np.zeros((0, 2)))

    @property
    def certain(self) -> Array:
        """Entries that must be in the support, `(N, V)`."""
        return self.ties.certain

    @property
    def possible(self) -> Array:
        """Entries that may be in the support, `(N, V)`."""
        return self.ties.possible

    @property
    def log_p_bound(self) -> Array:
        """Bound of the student's log-probs, `(N, V)`."""
        return self.sides[0].bound

    @property
    def log_q_bound(self) -> Array:
        """Bound of the teacher's log-probs, `(N, V)`."""
        return self.sides[1].bound

    def open_token(self, case: LossCase, n: int) -> OpenToken:
        """Token `n`, whose support is open."""
        return open_token(self.ties, n, self.sides, case.mode, case.config.alpha, roundings(case))


def roundings(case: LossCase) -> float:
    """The unit roundoff of a case's dtype, times the calibrated constant."""
    return TOLERANCES.loss_roundings * bounds.unit_roundoff(case.dtype)


def truth(case: LossCase, *, all_choices: bool = True) -> Truth:
    """Oracle values and budgets of all loss stages of a case.

    With `all_choices` the budgets leave room for each choice among ties; without, for none but the
    one that was recorded.
    """
    u = roundings(case)
    with np.errstate(all="ignore"):
        counts, student, teacher = oracle.scaled_logits(case, oracle.FLOAT64)
        token = oracle.evaluate(case, reference_choice(case, counts))
        ties = ties_at_edge(case, student, token.log_p) if all_choices else settled(token.chosen)
        divided = case.config.temperature != 1.0
        p_side = bounds.log_prob_bounds(student, token.log_p, divided, u)
        q_side = bounds.log_prob_bounds(teacher, token.log_q, divided, u)
        found = Truth(counts, {}, {}, token.log_p, token.log_q, (p_side, q_side), ties)
        found.spread = np.zeros(len(token.log_p))
        sides = ((student, token.log_p), (teacher, token.log_q))
        found.rounded = np.stack([bounds.largest_rounded(*side) for side in sides], axis=-1)
        add_log_probs(found, case)
        slope_bound = add_divergence(found, case, token, p_side, q_side, u)
        add_importance(found, case, token, slope_bound, u)
    smallest = bounds.underflow(case.dtype)
    for name, bound in found.bounds.items():
        inside = counts[..., None] if name == "gradient" else True
        found.bounds[name] = np.where(inside, bound + smallest, bound)
    return found


def reference_choice(case: LossCase, counts: Array) -> Array | None:
    """The support that the reference recorded, `(N, V)`, or None if there is no record."""
    indices = case.recorded.get("support.indices")
    if indices is None:
        return None
    return oracle.marked(indices.numpy()[counts], case.student_logits.shape[-1])


def ties_at_edge(case: LossCase, scaled: Array, log_p: Array) -> Ties:
    """Which entries must, and which may be in the support."""
    width = scaled.shape[-1]
    count = min(case.config.distillation_topk or width, width)
    if not case.mode.startswith("topk") or count == width:
        return settled(np.ones_like(scaled, dtype=bool))
    divided = case.config.temperature != 1.0
    return ties_of(scaled, log_p, count, divided, case.dtype)


def add_log_probs(found: Truth, case: LossCase) -> None:
    """Stage `log_probs`: the sampled tokens."""
    rows, own = np.arange(len(found.log_p)), case.responses.numpy()[found.counts]
    for side, log, bound in (
        ("student", found.log_p, found.log_p_bound),
        ("teacher", found.log_q, found.log_q_bound),
    ):
        found.values[f"log_probs.{side}"] = log[rows, own]
        found.bounds[f"log_probs.{side}"] = bound[rows, own]


def add_divergence(
    found: Truth, case: LossCase, token: Token, p_side: LogProbs, q_side: LogProbs, u: float
) -> Array:
    """Stages `tail` and `divergence`; returns the bound of dD/dz `(N, V)`."""
    found.values["divergence"] = token.divergence
    if case.mode == "sampled":
        d_bound, slope = bounds.sampled_bounds(token, p_side.bound, q_side.bound, u)
        found.bounds["divergence"] = d_bound
        return slope
    how = (case.mode, case.config.alpha, u)
    sides, d_bound, slope = bounds.on_support(token, p_side, q_side, *how)
    for side, log_on in (("student", token.log_a), ("teacher", token.log_b)):
        tail = bounds.tail_bound(sides[side])[:, None] if case.mode == "topk_tail" else 0
        found.values[f"tail.{side}"] = log_on
        found.bounds[f"tail.{side}"] = sides[side].bound + np.where(
            np.arange(log_on.shape[-1]) == log_on.shape[-1] - 1, tail, 0
        )
    for n in np.flatnonzero(found.ties.open):
        add_choices(found, case, token, int(n), (d_bound, slope))
    found.bounds["divergence"] = d_bound
    return slope


def add_choices(
    found: Truth, case: LossCase, token: Token, n: int, limits: tuple[Array, Array]
) -> None:
    """Widen the bounds of D and dD/dz of token `n` so that they hold for each choice among ties."""
    d_bound, slope = limits
    tied = found.open_token(case, n)
    picks = tied.choices()
    chosen = np.zeros((len(picks), token.chosen.shape[-1]), dtype=bool)
    chosen[:, tied.entries] = picks
    at, alpha = np.repeat(n, len(picks)), case.config.alpha
    # log-probs are logits of themselves
    there = oracle.evaluate_tokens(
        token.log_p[at], token.log_q[at], chosen, case.mode, alpha, oracle.FLOAT64
    )
    p_side, q_side = (side.of(at) for side in found.sides)
    _, d_there, slope_there = bounds.on_support(there, p_side, q_side, case.mode, alpha, tied.u)
    # a choice that gives NaN leaves no room for finite values: `fmax` passes it over
    away = [abs(end - token.divergence[n]) for end in tied.divergences()]
    found.spread[n] = np.fmax.reduce([0.0, *away])
    d_bound[n] = np.fmax(d_bound[n], np.fmax.reduce(d_there)) + found.spread[n]
    slope_there = slope_there + np.abs(there.slope - token.slope[n])
    slope[n] = np.fmax(slope[n], np.fmax.reduce(slope_there))


def ratio_interval(found: Truth, case: LossCase, u: float) -> tuple[Array, Array, Array]:
    """The clipped importance ratio of each token: value, lowest, highest, each `(N,)`."""
    if case.config.is_clip is None or case.old_log_probs is None:
        one = np.ones(len(found.log_p))
        return one, one, one
    own = found.values["log_probs.student"]
    log_ratio = own - oracle.array_of(case.old_log_probs)[found.counts]
    slack = found.bounds["log_probs.student"] + u * np.abs(log_ratio)
    value, low, high = (
        np.minimum(np.exp(np.clip(shifted, -20, 20)), case.config.is_clip)
        for shifted in (log_ratio, log_ratio - slack, log_ratio + slack)
    )
    return value, low, high


def add_importance(found: Truth, case: LossCase, token: Token, slope: Array, u: float) -> None:
    """Stages `importance`, `aggregate` and `gradient`."""
    ratio, low, high = ratio_interval(found, case, u)
    moved = np.maximum(high - ratio, ratio - low)
    weight = np.ones_like(ratio)
    if case.rollout_is_weights is not None:
        weight = oracle.array_of(case.rollout_is_weights)[found.counts]
    size = np.abs(token.divergence)
    value = token.divergence * ratio * weight
    bound = weight * (found.bounds["divergence"] * high + size * moved) + 4 * u * np.abs(value)
    found.values["importance"], found.bounds["importance"] = value, bound

    mask = oracle.array_of(case.loss_mask)
    share = oracle.aggregation_weights(mask, case.config.loss_agg_mode)[found.counts]
    loss = np.asarray((share * value).sum())
    rounding = u * (4 + bounds.growth(len(share), u)) * np.abs(share * value).sum()
    # choices among ties are no roundings: all may go the same way
    of_choice = weight * found.spread * high
    of_rounding = np.where(np.isfinite(of_choice), bound - of_choice, bound)
    limit = bounds.together(share * of_rounding) + (share * of_choice).sum()
    found.values["aggregate"] = loss
    found.bounds["aggregate"] = np.asarray(limit + rounding)

    scale = (share * weight / case.config.temperature)[:, None]
    found.weight, found.share = ratio * weight, scale[:, 0] * ratio
    of_gap = found.rounded.sum(axis=-1) if case.mode == "sampled" else 1.0
    found.unit = float(np.max(found.share * of_gap, initial=0.0))
    gradient = np.zeros(case.student_logits.shape)
    limit = np.zeros(case.student_logits.shape)
    gradient[found.counts] = scale * ratio[:, None] * token.slope
    limit[found.counts] = scale * (
        slope * high[:, None] + np.abs(token.slope) * moved[:, None]
    ) + 6 * u * np.abs(gradient[found.counts])
    found.values["gradient"], found.bounds["gradient"] = gradient, limit
