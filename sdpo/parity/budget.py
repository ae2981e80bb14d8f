"""Budgets: how far a correct evaluation may be from the definition, element by element.

`truth` evaluates the oracle on a case and bounds each stage (`bounds.py`). Switch points admit both
branches within rounding: the tail's limit, the ratio's cap, and the choice among logits that are
equal within rounding at the edge of the top-k.

`ROUNDINGS` is the one constant. It was fixed by running correct evaluation orders that differ in
summation order, in the form of the expressions and in compilation (`tests/test_budget.py` repeats
that): none may use more than half of a budget.
"""

from dataclasses import dataclass, field
from itertools import combinations
from math import comb

import numpy as np

from sdpo.parity import bounds, oracle
from sdpo.parity.bounds import Entries, LogProbs
from sdpo.parity.case import LossCase
from sdpo.parity.oracle import Array, Token

ROUNDINGS = 2.5
MOST_CHOICES = 64


@dataclass
class Truth:
    """Oracle values and budgets of a loss case, keyed by stage, as float64 arrays.

    Per-token values are `(N, …)` for the tokens that count, in row-major order of `counts`
    `(B, T)`; `aggregate` is a scalar and `gradient` `(B, T, V)`. `log_p`, `log_q` and their bounds
    cover the vocabulary; `certain` and `possible` `(N, V)` mark the entries that must and may be in
    the support. `weight` `(N,)` is ratio times rollout weight, `share` that times the weight in the
    gradient, and `rounded` `(N, 2)` the largest number on the way to a token's log-probs of student
    and teacher. `unit` is the natural scale of the gradient: of the largest share, which in
    sampled-token mode multiplies a difference of log-probs.
    """

    counts: Array
    values: dict[str, Array]
    bounds: dict[str, Array]
    log_p: Array
    log_q: Array
    log_p_bound: Array
    log_q_bound: Array
    certain: Array
    possible: Array
    unit: float = 0.0
    weight: Array = field(default_factory=lambda: np.zeros(0))
    share: Array = field(default_factory=lambda: np.zeros(0))
    rounded: Array = field(default_factory=lambda: np.zeros((0, 2)))


def truth(case: LossCase) -> Truth:
    """Oracle values and budgets of all loss stages of a case."""
    u = ROUNDINGS * bounds.unit_roundoff(case.dtype)
    with np.errstate(all="ignore"):
        counts, student, teacher = oracle.scaled_logits(case, oracle.FLOAT64)
        certain, possible = choice_limits(case, student)
        token = oracle.evaluate(case, reference_choice(case, counts))
        divided = case.config.temperature != 1.0
        p_side = bounds.log_prob_bounds(student, token.log_p, divided, u)
        q_side = bounds.log_prob_bounds(teacher, token.log_q, divided, u)
        found = Truth(
            counts, {}, {}, token.log_p, token.log_q, p_side.bound, q_side.bound, certain, possible
        )
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


def choice_limits(case: LossCase, scaled: Array) -> tuple[Array, Array]:
    """Entries that must, and that may, be in the support `(N, V)`: ties at the edge are open.

    Logits tie if they are equal, or closer than the roundings of the division by temperature.
    """
    width = scaled.shape[-1]
    count = min(case.config.distillation_topk or width, width)
    if case.mode in ("sampled", "full_vocab") or count == width or not len(scaled):
        every = np.ones_like(scaled, dtype=bool)
        return every, every
    ordered = -np.sort(-scaled, axis=-1)
    last_in, first_out = ordered[:, count - 1 : count], ordered[:, count : count + 1]
    divided = case.config.temperature != 1.0
    slack = 2 * bounds.unit_roundoff(case.dtype) * divided
    certain = scaled > first_out + slack * (np.abs(scaled) + np.abs(first_out))
    possible = scaled >= last_in - slack * (np.abs(scaled) + np.abs(last_in))
    return certain, possible


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
    sides, d_bound, slope = divergence_bounds(case, token, p_side, q_side, u)
    for side, log_on in (("student", token.log_a), ("teacher", token.log_b)):
        tail = bounds.tail_bound(sides[side])[:, None] if case.mode == "topk_tail" else 0
        found.values[f"tail.{side}"] = log_on
        found.bounds[f"tail.{side}"] = sides[side].bound + np.where(
            np.arange(log_on.shape[-1]) == log_on.shape[-1] - 1, tail, 0
        )
    for n in np.flatnonzero((found.certain != found.possible).any(axis=-1)):
        choices = other_choices(found, case, token, int(n))
        at = np.repeat(n, len(choices.divergence))
        _, d_there, slope_there = divergence_bounds(case, choices, p_side.of(at), q_side.of(at), u)
        # a choice that gives NaN leaves no room for finite values: `fmax` passes it over
        d_there = d_there + np.abs(choices.divergence - token.divergence[n])
        slope_there = slope_there + np.abs(choices.slope - token.slope[n])
        d_bound[n] = np.fmax(d_bound[n], np.fmax.reduce(d_there))
        slope[n] = np.fmax(slope[n], np.fmax.reduce(slope_there))
    found.bounds["divergence"] = d_bound
    return slope


def divergence_bounds(
    case: LossCase, token: Token, p_side: LogProbs, q_side: LogProbs, u: float
) -> tuple[dict[str, Entries], Array, Array]:
    """Both sides on the support with their bounds, and the bounds of D `(N,)`, dD/dz `(N, V)`."""
    alpha, mode = case.config.alpha, case.mode
    a = bounds.entries(token.log_a, p_side, token.chosen, mode, u)
    b = bounds.entries(token.log_b, q_side, token.chosen, mode, u)
    d_bound = bounds.divergence_bound(a, b, token.g, alpha, u)
    if mode == "topk_tail":
        d_bound = d_bound + bounds.tail_corners(a, b, alpha)[0]
    slope = bounds.slope_bound(token, p_side, a, b, mode, alpha, u)
    return {"student": a, "teacher": b}, d_bound, slope


def other_choices(found: Truth, case: LossCase, token: Token, n: int) -> Token:
    """The values of token `n` for each choice among its tied logits, `(choices, …)`."""
    certain, open_ = found.certain[n], np.flatnonzero(found.possible[n] & ~found.certain[n])
    places = int(token.chosen[n].sum() - certain.sum())
    if comb(len(open_), places) <= MOST_CHOICES:
        picks = list(combinations(open_, places))
    else:
        by_teacher = open_[np.argsort(found.log_q[n, open_])]
        picks = [tuple(by_teacher[:places]), tuple(by_teacher[len(open_) - places :])]
    chosen = np.repeat(certain[None], len(picks), axis=0)
    for row, pick in enumerate(picks):
        chosen[row, list(pick)] = True
    _, student, teacher = oracle.scaled_logits(case, oracle.FLOAT64)
    return oracle.evaluate_tokens(
        np.repeat(student[n : n + 1], len(picks), axis=0),
        np.repeat(teacher[n : n + 1], len(picks), axis=0),
        chosen,
        case.mode,
        case.config.alpha,
        oracle.FLOAT64,
    )


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
    found.values["aggregate"] = loss
    found.bounds["aggregate"] = np.asarray(bounds.together(share * bound) + rounding)

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
