"""The oracle: every stage of the loss from its definition, in more precision than the candidate.

It works in probability space on the tokens that count, with the gradient in closed form instead of
by differentiation, and shares no helper and no idiom with `sdpo/` or `reference/`. Float64 judges
cases of lower precision; float64 cases are evaluated with 40 decimal digits.

    p, q   probabilities of student and teacher over the vocabulary
    a, b   the same over the support; the last entry is the tail where there is one
    D      divergence of a token;   g = ∂D/∂log a;   loss = Σ weight · D
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mpmath
import numpy as np
import torch

from sdpo.parity.cases.loss_case import LossCase

SMALLEST_TAIL = 1e-7
"""Limit on minus the log of the mass inside the top-k (reference: clamp at -1e-7)."""

Array = np.ndarray


@dataclass(frozen=True)
class Arithmetic:
    """The elementary functions of one precision, on arrays."""

    exp: Callable[[Any], Any]
    log: Callable[[Any], Any]
    number: Callable[[Any], Any]


FLOAT64 = Arithmetic(np.exp, np.log, np.float64)
PRECISE = Arithmetic(
    np.frompyfunc(mpmath.exp, 1, 1), np.frompyfunc(mpmath.log, 1, 1), lambda x: mpmath.mpf(float(x))
)


@dataclass(frozen=True)
class Token:
    """Definition-level values of the `N` tokens that count, as float64 arrays.

    `log_p`, `log_q` `(N, V)`; `chosen` `(N, V)` marks the support; `log_a`, `log_b`, `g` `(N, V+1)`
    with the tail last and `-inf`, 0 at unused entries; `divergence` `(N,)`; `slope` `(N, V)` is
    dD/dz, z being logits ÷ temperature; `tail_limited` `(N, 2)` tells where the smallest tail
    (student, teacher) was in force.
    """

    log_p: Array
    log_q: Array
    chosen: Array
    log_a: Array
    log_b: Array
    g: Array
    divergence: Array
    slope: Array
    tail_limited: Array


def array_of(tensor: torch.Tensor) -> Array:
    """A tensor as float64."""
    return tensor.detach().double().numpy()


def _arithmetic_for(case: LossCase) -> Arithmetic:
    """Enough precision to judge results of a case, of both sides."""
    dtypes = (case.student_logits.dtype, case.teacher_logits.dtype)
    return PRECISE if torch.float64 in dtypes else FLOAT64


def log_probabilities(scaled: Array, numbers: Arithmetic) -> Array:
    """`log p` of logits ÷ temperature, `(N, V)`."""
    shifted = scaled - scaled.max(axis=-1, keepdims=True)
    return shifted - numbers.log(numbers.exp(shifted).sum(axis=-1, keepdims=True))


def largest(scaled: Array, count: int) -> Array:
    """Marks the `count` largest entries of each row; the lowest index wins a tie."""
    order = np.argsort(-scaled, axis=-1, kind="stable")[:, :count]
    return marked(order, scaled.shape[-1])


def marked(indices: Array, width: int) -> Array:
    """`(N, K)` indices as a `(N, width)` mask."""
    mask = np.zeros((len(indices), width), dtype=bool)
    np.put_along_axis(mask, indices, True, axis=-1)
    return mask


def on_support(log_p: Array, chosen: Array, mode: str, numbers: Arithmetic) -> tuple[Array, Array]:
    """Log-probabilities on the support with the tail last, `(N, V+1)`; is the tail limited?"""
    never = np.zeros(len(log_p), bool)
    nothing = np.full_like(log_p[:, :1], -np.inf)
    log_inside = np.where(chosen, log_p, -np.inf)
    if mode == "full_vocab":
        return np.hstack([log_inside, nothing]), never
    if mode == "topk_renorm":
        top = log_inside.max(axis=-1, keepdims=True)
        log_mass = top + numbers.log(numbers.exp(log_inside - top).sum(axis=-1, keepdims=True))
        return np.hstack([log_inside - log_mass, nothing]), never
    outside = np.where(chosen, 0, numbers.exp(log_p)).sum(axis=-1, keepdims=True)
    smallest = 1 - numbers.exp(numbers.number(-SMALLEST_TAIL))
    limited = (outside <= smallest)[:, 0]
    rest = np.where(limited[:, None], smallest, outside)
    return np.hstack([log_inside, numbers.log(rest)]), limited


def _kl_terms(log_x: Array, log_y: Array, numbers: Arithmetic) -> Array:
    """The terms x log(x/y) of KL(x‖y); zero where x is zero."""
    empty = log_x == -np.inf
    gap = np.where(empty, 0, log_x) - np.where(empty, 0, log_y)
    return np.where(empty, 0, numbers.exp(np.where(empty, 0, log_x)) * gap)


def mixture(log_a: Array, log_b: Array, alpha: Any, numbers: Arithmetic) -> Array:
    """log((1-alpha) a + alpha b), `-inf` where both are zero."""
    top = np.maximum(log_a, log_b)
    empty = top == -np.inf
    top = np.where(empty, 0, top)
    total = (1 - alpha) * numbers.exp(log_a - top) + alpha * numbers.exp(log_b - top)
    return np.where(empty, -np.inf, top + numbers.log(np.where(empty, 1, total)))


def divergence_and_derivative(
    log_a: Array, log_b: Array, alpha: float, numbers: Arithmetic
) -> tuple[Array, Array]:
    """Terms of D over the support, and g = ∂D/∂log a."""
    used = log_a != -np.inf
    if alpha == 0.0:
        return _kl_terms(log_b, log_a, numbers), np.where(used, -numbers.exp(log_b), 0)
    if alpha == 1.0:
        terms = _kl_terms(log_a, log_b, numbers)
        return terms, terms + numbers.exp(log_a)
    weight = numbers.number(alpha)
    log_m = mixture(log_a, log_b, weight, numbers)
    terms = (1 - weight) * _kl_terms(log_a, log_m, numbers)
    terms = terms + weight * _kl_terms(log_b, log_m, numbers)
    return terms, (1 - weight) * _kl_terms(log_a, log_m, numbers)


def slope_of(
    g: Array, log_p: Array, log_a: Array, mode: str, limited: Array, xp: Arithmetic
) -> Array:
    """dD/dz `(N, V)` from g = ∂D/∂log a.

    What an entry gains the tail loses, unless the tail is limited. Renormalised, what an entry
    gains the others in the support lose.
    """
    p, inside = xp.exp(log_p), g[:, :-1]
    if mode == "topk_renorm":
        return inside - xp.exp(log_a[:, :-1]) * inside.sum(axis=-1, keepdims=True)
    if mode == "topk_tail":
        rate = np.where(limited, 0, g[:, -1] / xp.exp(log_a[:, -1]))[:, None]
        inside = inside - xp.exp(log_a[:, :-1]) * rate
    return inside - p * inside.sum(axis=-1, keepdims=True)


def evaluate_tokens(
    student: Array, teacher: Array, chosen: Array, mode: str, alpha: float, numbers: Arithmetic
) -> Token:
    """All per-token values of a distribution-comparing mode, from logits ÷ temperature `(N, V)`."""
    log_p, log_q = log_probabilities(student, numbers), log_probabilities(teacher, numbers)
    log_a, limited = on_support(log_p, chosen, mode, numbers)
    log_b, teacher_limited = on_support(log_q, chosen, mode, numbers)
    terms, g = divergence_and_derivative(log_a, log_b, alpha, numbers)
    slope = slope_of(g, log_p, log_a, mode, limited, numbers)
    values = (log_p, log_q, log_a, log_b, g, terms.sum(axis=-1), slope)
    log_p, log_q, log_a, log_b, g, total, slope = (np.asarray(v, dtype=np.float64) for v in values)
    both = np.stack([limited, teacher_limited], axis=-1)
    return Token(log_p, log_q, chosen, log_a, log_b, g, total, slope, both)


def scaled_logits(case: LossCase, numbers: Arithmetic) -> tuple[Array, Array, Array]:
    """Which tokens count `(B, T)`, and both sides' logits ÷ temperature on those, `(N, V)`."""
    counts = (case.loss_mask != 0).numpy()
    sides = []
    for logits in (case.student_logits, case.teacher_logits):
        rows = array_of(logits)[counts]
        if numbers is PRECISE:
            rows = np.frompyfunc(mpmath.mpf, 1, 1)(rows)
        sides.append(rows / numbers.number(case.config.temperature))
    return counts, sides[0], sides[1]


def aggregation_weights(loss_mask: Array, loss_agg_mode: str) -> Array:
    """The weight of each token's loss in the batch loss, `(B, T)`; zero for an empty batch."""
    tokens = loss_mask.sum(axis=-1, keepdims=True)
    rows = max(int((tokens > 0).sum()), 1)
    if loss_agg_mode == "token-mean":
        return loss_mask / max(loss_mask.sum(), 1)
    if loss_agg_mode == "seq-mean-token-sum":
        return loss_mask / rows
    if loss_agg_mode == "seq-mean-token-mean":
        return loss_mask / np.maximum(tokens, 1) / rows
    return loss_mask / loss_mask.shape[-1]


def sampled_values(student: Array, teacher: Array, responses: Array, xp: Arithmetic) -> Token:
    """Values of sampled-token mode, from logits ÷ temperature `(N, V)` and token ids `(N,)`.

    D is the surrogate (log p - log q) log p of the sampled token, the factor in brackets constant.
    """
    log_p, log_q = log_probabilities(student, xp), log_probabilities(teacher, xp)
    at = marked(responses[:, None], student.shape[-1])
    chosen_p, chosen_q = log_p[at], log_q[at]
    slope = (chosen_p - chosen_q)[:, None] * (np.where(at, 1, 0) - xp.exp(log_p))
    total = (chosen_p - chosen_q) * chosen_p
    log_p, log_q, total, slope = (
        np.asarray(v, dtype=np.float64) for v in (log_p, log_q, total, slope)
    )
    nothing = np.full((len(log_p), log_p.shape[1] + 1), -np.inf)
    no_limit = np.zeros((len(log_p), 2), bool)
    return Token(log_p, log_q, at, nothing, nothing, np.zeros_like(nothing), total, slope, no_limit)


def evaluate(case: LossCase, chosen: Array | None = None) -> Token:
    """The definition's values for all tokens of a case that count.

    Args:
        case: the inputs, rounded to the case's dtype.
        chosen: `(N, V)` support to use instead of the student's K largest entries.
    """
    numbers = _arithmetic_for(case)
    with np.errstate(all="ignore"), mpmath.workdps(40):
        counts, student, teacher = scaled_logits(case, numbers)
        if case.mode == "sampled":
            return sampled_values(student, teacher, case.responses.numpy()[counts], numbers)
        width = student.shape[-1]
        if chosen is None:
            chosen = largest(student, min(case.config.distillation_topk or width, width))
        alpha = case.config.alpha
        return evaluate_tokens(student, teacher, chosen, case.mode, alpha, numbers)
