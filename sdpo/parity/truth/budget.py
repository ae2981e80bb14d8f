"""Budgets: how far a correct evaluation may be from the definition, element by element.

`truth` evaluates the oracle on a case and bounds each stage (`error_bounds.py`). Switch points
admit both branches within rounding: the tail's limit, the ratio's cap, and the choice among entries
that tie at the edge of the top-k (`topk_ties.py`).

Unit roundoff is taken `loss_roundings` times. That was fixed by running correct evaluation orders
that differ in summation order, in the form of the expressions and in compilation
(`tests/parity/truth/test_budget.py` repeats that): none may use more than half of a budget.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from sdpo.parity.cases.loss_case import LossCase
from sdpo.parity.truth import error_bounds, oracle
from sdpo.parity.truth.error_bounds import Distribution, LogProbs
from sdpo.parity.truth.oracle import FLOAT64, Array, Token
from sdpo.parity.truth.tie_choices import OpenToken, open_token
from sdpo.parity.truth.tolerances import TOLERANCES
from sdpo.parity.truth.topk_ties import Ties, settled, ties_of


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Oracle values and budgets of a loss case, keyed by stage, as float64 arrays.

    Attributes:
        counts: `(B, T)`, the tokens that count; `N` of them, in row-major order.
        values: of the definition: per-token values `(N, …)`, `aggregate` a scalar, `gradient`
            `(B, T, V)`.
        bounds: how far a correct evaluation may be from each.
        student: log-probs over the vocabulary, with their bounds.
        teacher: the same.
        ties: which entries must, and which may be in the support.
        tie_spread: `(N,)`, what other choices among ties take of the divergence's bound.
        token_weight: `(N,)`, importance ratio times rollout weight.
        gradient_weight: `(N,)`, what dD/dz is multiplied by in the gradient.
        gradient_scale: its natural size: the largest weight of a token, which in sampled-token mode
            multiplies a difference of log-probs.
        largest_rounded: `(N, 2)`, the largest number on the way to the log-probs of both sides.
    """

    counts: Array
    values: dict[str, Array]
    bounds: dict[str, Array]
    student: LogProbs
    teacher: LogProbs
    ties: Ties
    tie_spread: Array
    token_weight: Array
    gradient_weight: Array
    gradient_scale: float
    largest_rounded: Array

    @property
    def log_p(self) -> Array:
        """`(N, V)` of the student."""
        return self.student.value

    @property
    def log_q(self) -> Array:
        """`(N, V)` of the teacher."""
        return self.teacher.value

    def open_token(self, case: LossCase, n: int) -> OpenToken:
        """Token `n`, whose support is open."""
        return open_token(self.ties, n, (self.student, self.teacher), distribution_of(case))


class Bounded(NamedTuple):
    """A value of the definition, and how far a correct evaluation may be from it."""

    value: Array
    bound: Array


def distribution_of(case: LossCase) -> Distribution:
    """Mode and alpha of a case, and the unit roundoff of what combines both sides."""
    return Distribution(case.mode, case.config.alpha, _roundoff(case.coarsest_dtype))


def _roundoff(dtype: torch.dtype) -> float:
    """The unit roundoff times the calibrated constant."""
    return TOLERANCES.loss_roundings * error_bounds.unit_roundoff(dtype)


def truth(case: LossCase, *, all_choices: bool = True) -> Truth:
    """Evaluate the oracle on a case, and bound all loss stages.

    With `all_choices` the budgets leave room for each choice among ties; without, for none but the
    one that was recorded.
    """
    u = distribution_of(case).u
    with np.errstate(all="ignore"):
        counts, student_z, teacher_z = oracle.scaled_logits(case, FLOAT64)
        token = oracle.evaluate(case, _reference_choice(case, counts))
        ties = _ties_at_edge(case, student_z, token.log_p) if all_choices else settled(token.chosen)
        divided = case.config.temperature != 1.0
        of_student, of_teacher = (
            _roundoff(logits.dtype) for logits in (case.student_logits, case.teacher_logits)
        )
        student = error_bounds.log_prob_bounds(student_z, token.log_p, divided, of_student)
        teacher = error_bounds.log_prob_bounds(teacher_z, token.log_q, divided, of_teacher)
        logits = ((student_z, token.log_p), (teacher_z, token.log_q))
        rounded = np.stack([error_bounds.largest_rounded(*side) for side in logits], axis=-1)
        stages = _sampled_log_probs(case, counts, student, teacher)
        divergence = _divergence(case, token, student, teacher, ties)
        stages |= divergence.stages
        weights = _token_weights(case, counts, stages["log_probs.student"], of_student)
        importance = _importance(stages["divergence"], weights, u)
        stages["importance"] = importance
        stages["aggregate"] = _aggregate(importance, divergence.tie_spread, weights, u)
        gradient_weight = weights.in_gradient * weights.ratio
        stages["gradient"] = _gradient(
            case, counts, Bounded(token.slope, divergence.slope), weights
        )
    smallest = error_bounds.underflow(case.dtype)
    bounds = {name: bound + smallest for name, (_, bound) in stages.items()}
    # a probability may underflow before it is multiplied by a difference of logs and the weights
    largest_factor = 1 + gradient_weight * rounded.sum(axis=-1)
    bounds["gradient"] = stages["gradient"].bound.copy()
    bounds["gradient"][counts] += smallest * largest_factor[:, None]
    of_gap = rounded.sum(axis=-1) if case.mode == "sampled" else 1.0
    return Truth(
        counts=counts,
        values={name: value for name, (value, _) in stages.items()},
        bounds=bounds,
        student=student,
        teacher=teacher,
        ties=ties,
        tie_spread=divergence.tie_spread,
        token_weight=weights.ratio * weights.rollout,
        gradient_weight=gradient_weight,
        gradient_scale=float(np.max(gradient_weight * of_gap, initial=0.0)),
        largest_rounded=rounded,
    )


def _reference_choice(case: LossCase, counts: Array) -> Array | None:
    """The support that the reference recorded, `(N, V)`, or None if there is no record."""
    indices = case.recorded.get("support.indices")
    if indices is None:
        return None
    return oracle.marked(indices.numpy()[counts], case.student_logits.shape[-1])


def _ties_at_edge(case: LossCase, z: Array, log_p: Array) -> Ties:
    """Which entries must, and which may be in the support."""
    width = z.shape[-1]
    count = min(case.config.distillation_topk or width, width)
    if not case.mode.startswith("topk") or count == width:
        return settled(np.ones_like(z, dtype=bool))
    return ties_of(z, log_p, count, case.config.temperature != 1.0, case.dtype)


def _sampled_log_probs(
    case: LossCase, counts: Array, student: LogProbs, teacher: LogProbs
) -> dict[str, Bounded]:
    """Stage `log_probs`: those of the sampled tokens."""
    responses = case.responses.numpy()[counts]
    at = np.arange(len(responses)), responses
    return {
        f"log_probs.{name}": Bounded(side.value[at], side.bound[at])
        for name, side in (("student", student), ("teacher", teacher))
    }


class _Divergence(NamedTuple):
    """Stages `divergence` and `tail`, the bound of dD/dz `(N, V)`, the spread of ties `(N,)`."""

    stages: dict[str, Bounded]
    slope: Array
    tie_spread: Array


def _divergence(
    case: LossCase, token: Token, student: LogProbs, teacher: LogProbs, ties: Ties
) -> _Divergence:
    """Bound the divergence, and widen its bounds for the choices among ties."""
    of = distribution_of(case)
    tie_spread = np.zeros(len(token.log_p))
    if case.mode == "sampled":
        bound, slope = error_bounds.sampled_bounds(token, student.bound, teacher.bound, of.u)
        return _Divergence({"divergence": Bounded(token.divergence, bound)}, slope, tie_spread)
    (a, b), bound, slope = error_bounds.distribution_bounds(token, student, teacher, of)
    moved = _moved_by_alpha(token, of)
    bound, slope = bound + moved.divergence, slope + moved.slope
    for n in np.flatnonzero(ties.open):
        tied = open_token(ties, int(n), (student, teacher), of)
        room = _room_of_choices(token, int(n), tied, student, teacher)
        tie_spread[n] = room.spread
        bound[n] = np.fmax(bound[n], room.divergence) + room.spread
        slope[n] = np.fmax(slope[n], room.slope)
    stages = {"divergence": Bounded(token.divergence, bound)}
    for name, side in (("student", a), ("teacher", b)):
        tail = side.tail_bound[:, None] if case.mode == "topk_tail" else 0
        last = np.arange(side.log.shape[-1]) == side.log.shape[-1] - 1
        stages[f"tail.{name}"] = Bounded(side.log, side.bound + np.where(last, tail, 0))
    return _Divergence(stages, slope, tie_spread)


class _Moved(NamedTuple):
    """How far D `(N,)` and dD/dz `(N, V)` move."""

    divergence: Array | float
    slope: Array | float


def _moved_by_alpha(token: Token, of: Distribution) -> _Moved:
    """Follow the interval of a rounded alpha, which is no small part of the smaller weight.

    For D only near an end, as 0.999 is 1 in bfloat16: elsewhere the second order is below a
    rounding, and `error_bounds` has the first.
    """
    error, nearest = of.u * of.alpha, min(of.alpha, 1 - of.alpha)
    if nearest == 0:
        return _Moved(0.0, 0.0)
    # at the ends themselves alpha means another form
    inside = np.finfo(float).eps
    moved = []
    for end in (max(of.alpha - error, inside), min(of.alpha + error, 1 - inside)):
        there = oracle.evaluate_tokens(
            token.log_p, token.log_q, token.chosen, of.mode, end, FLOAT64
        )
        moved.append(
            (np.abs(there.divergence - token.divergence), np.abs(there.slope - token.slope))
        )
    (low, low_slope), (high, high_slope) = moved
    near_end = (error / nearest) ** 2 > of.u
    return _Moved(np.fmax(low, high) if near_end else 0.0, np.fmax(low_slope, high_slope))


class _RoomOfChoices(NamedTuple):
    """How far choices among ties move D of a token, their bound of D, and of dD/dz `(V,)`."""

    spread: float
    divergence: float
    slope: Array


def _room_of_choices(
    token: Token, n: int, tied: OpenToken, student: LogProbs, teacher: LogProbs
) -> _RoomOfChoices:
    """Bound token `n` so that the bounds hold for each choice among ties."""
    picks = tied.choices()
    chosen = np.zeros((len(picks), token.chosen.shape[-1]), dtype=bool)
    chosen[:, tied.entries] = picks
    at, of = np.repeat(n, len(picks)), tied.of
    # log-probs are logits of themselves
    there = oracle.evaluate_tokens(
        token.log_p[at], token.log_q[at], chosen, of.mode, of.alpha, FLOAT64
    )
    _, bound, slope = error_bounds.distribution_bounds(
        there, student.rows(at), teacher.rows(at), of
    )
    # a choice that gives NaN leaves no room for finite values: `fmax` passes it over
    away = [abs(end - token.divergence[n]) for end in tied.divergences()]
    slope = slope + np.abs(there.slope - token.slope[n])
    spread = np.fmax.reduce([0.0, *away])
    return _RoomOfChoices(spread, np.fmax.reduce(bound), np.fmax.reduce(slope))


class _TokenWeights(NamedTuple):
    """What a token's divergence is multiplied by, each `(N,)`.

    The clipped importance ratio with its lowest and highest value, the rollout weight, the weight
    in the mean, and rollout weight times weight in the mean ÷ temperature, in the gradient.
    """

    ratio: Array
    lowest: Array
    highest: Array
    rollout: Array
    in_mean: Array
    in_gradient: Array

    @property
    def ratio_error(self) -> Array:
        """How far the ratio may be off."""
        return np.maximum(self.highest - self.ratio, self.ratio - self.lowest)


def _token_weights(case: LossCase, counts: Array, log_prob: Bounded, u: float) -> _TokenWeights:
    """Follow the interval of the sampled token's log-prob to that of the clipped ratio."""
    ratios: tuple[Array, ...] = (np.ones(len(log_prob.value)),) * 3
    if case.config.is_clip is not None and case.old_log_probs is not None:
        log_ratio = log_prob.value - oracle.array_of(case.old_log_probs)[counts]
        # of a sampled token of probability zero it is -inf, whatever rounds
        slack = log_prob.bound + u * error_bounds.finite_or_zero(np.abs(log_ratio))
        ratios = tuple(
            np.minimum(np.exp(np.clip(shifted, -20, 20)), case.config.is_clip)
            for shifted in (log_ratio, log_ratio - slack, log_ratio + slack)
        )
    ratio, lowest, highest = ratios
    rollout = np.ones_like(ratio)
    if case.rollout_is_weights is not None:
        rollout = oracle.array_of(case.rollout_is_weights)[counts]
    mask = oracle.array_of(case.loss_mask)
    in_mean = oracle.aggregation_weights(mask, case.config.loss_agg_mode)[counts]
    in_gradient = in_mean * rollout / case.config.temperature
    return _TokenWeights(ratio, lowest, highest, rollout, in_mean, in_gradient)


def _importance(divergence: Bounded, weights: _TokenWeights, u: float) -> Bounded:
    """Stage `importance`: D times ratio times rollout weight."""
    value = divergence.value * weights.ratio * weights.rollout
    size = np.abs(divergence.value)
    of_factors = divergence.bound * weights.highest + size * weights.ratio_error
    return Bounded(value, weights.rollout * of_factors + 4 * u * np.abs(value))


def _aggregate(importance: Bounded, tie_spread: Array, weights: _TokenWeights, u: float) -> Bounded:
    """Stage `aggregate`: the weighted sum over the tokens."""
    terms = weights.in_mean * importance.value
    of_sum = u * (4 + error_bounds.roundings_of_sum(len(terms), u)) * np.abs(terms).sum()
    # choices among ties are no roundings: all may go the same way
    of_choice = weights.rollout * tie_spread * weights.highest
    of_rounding = np.where(np.isfinite(of_choice), importance.bound - of_choice, importance.bound)
    bound = error_bounds.sum_of_independent(weights.in_mean * of_rounding)
    bound = bound + (weights.in_mean * of_choice).sum()
    return Bounded(np.asarray(terms.sum()), np.asarray(bound + of_sum))


def _gradient(case: LossCase, counts: Array, slope: Bounded, weights: _TokenWeights) -> Bounded:
    """Stage `gradient`: dD/dz times all weights of its token."""
    u = distribution_of(case).u
    value, bound = np.zeros(case.student_logits.shape), np.zeros(case.student_logits.shape)
    scale = weights.in_gradient[:, None]
    rows = scale * weights.ratio[:, None] * slope.value
    of_factors = slope.bound * weights.highest[:, None]
    of_factors = of_factors + np.abs(slope.value) * weights.ratio_error[:, None]
    value[counts], bound[counts] = rows, scale * of_factors + 6 * u * np.abs(rows)
    return Bounded(value, bound)
