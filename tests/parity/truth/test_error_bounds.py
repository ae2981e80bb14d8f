"""Bounds on cases that are small enough for a pencil. Here u is 1e-7."""

import math

import numpy as np
import pytest
import torch

from sdpo.parity.cases.loss_case import LossCase
from sdpo.parity.truth import oracle
from sdpo.parity.truth.budget import distribution_of, truth
from sdpo.parity.truth.error_bounds import (
    Distribution,
    LogProbs,
    SupportBounds,
    derivative_bound,
    distribution_bounds,
    divergence_bound,
    largest_rounded,
    log_prob_bounds,
    roundings_of_sum,
    sampled_bounds,
    slope_bound,
    sum_of_independent,
    support_bounds,
    tail_interval,
    tail_movement,
    underflow,
    unit_roundoff,
)
from sdpo.settings.config import SDPOConfig

U = 1e-7
LOG2 = math.log(2)


def logs(*probabilities: float) -> np.ndarray:
    """Log-probs of one token."""
    with np.errstate(divide="ignore"):
        return np.log(np.array([probabilities]))


def exact(log_p: np.ndarray) -> LogProbs:
    """Log-probs without any error."""
    return LogProbs(log_p, np.zeros_like(log_p), np.zeros((1, 1)), U)


def on_support(log: np.ndarray, entry_error: float = 0.0, token_error: float = 0.0):
    """A side on a support without a tail: the last entry is unused."""
    errors = np.full_like(log, entry_error) * np.isfinite(log)
    no_tail = np.full((1, 2), -np.inf), np.zeros((1, 2), bool)
    return SupportBounds(log, errors, np.array([[token_error]]), *no_tail)


def test_a_rounding_is_half_a_unit_in_the_last_place():
    assert unit_roundoff(torch.float32) == 2.0**-24
    assert unit_roundoff(torch.bfloat16) == 2.0**-8
    assert underflow(torch.float16) == 2.0**-24
    assert underflow(torch.float32) == 2.0**-126


def test_independent_errors_add_up_in_quadrature():
    # three deviations of √(3² + 4²) = 5 are 15, more than the sum of 7; of twenty ones, 3 · √20
    assert sum_of_independent(np.array([3.0, -4.0])) == 7
    assert sum_of_independent(np.ones(20)) == pytest.approx(3 * 20**0.5)


def test_a_sum_of_four_terms_adds_up_two_roundings_and_one_in_half_precision():
    assert roundings_of_sum(4, 2.0**-24) == 2
    assert roundings_of_sum(4, 2.0**-8) == 1


def test_equal_logits_of_zero_have_the_roundings_of_their_logarithm_and_of_the_sum():
    """Four zeros: p = 1/4, L = 2 log 2; no exponent and no logit is rounded."""
    found = log_prob_bounds(np.zeros((1, 4)), logs(*[0.25] * 4), divided=False, u=U)
    assert found.entry_error == pytest.approx(2 * U * 2 * LOG2)
    assert found.token_error == pytest.approx(U * (2 + 1 + 2 * LOG2))
    assert found.bound == pytest.approx(found.entry_error + found.token_error)


def test_a_temperature_rounds_each_logit_twice():
    """Z = log 3 and 0: p = 3/4 and 1/4, L = log 4; z − max z = 0 and −log 3."""
    z, log3 = np.array([[math.log(3), 0.0]]), math.log(3)
    plain, warm = (log_prob_bounds(z, logs(0.75, 0.25), divided, U) for divided in (False, True))
    assert warm.entry_error - plain.entry_error == pytest.approx(np.array([[2 * U * log3, 0.0]]))
    of_sum = U * (math.sqrt(2) + 1 + math.log(4))
    assert plain.token_error.item() == pytest.approx(0.25 * U * log3 + of_sum)
    # 3/4 · 2u log 3 and 1/4 · u log 3: less than three deviations, so just their sum
    assert warm.token_error.item() == pytest.approx(1.75 * U * log3 + of_sum)


def test_an_impossible_entry_has_no_error():
    with np.errstate(invalid="ignore"):
        found = log_prob_bounds(np.array([[0.0, -np.inf]]), logs(1.0, 0.0), divided=True, u=U)
    assert found.entry_error[0, 1] == found.bound[0, 1] == 0


def test_the_largest_number_on_the_way_is_a_logit_an_exponential_or_the_normalizer():
    assert largest_rounded(np.zeros((1, 2)), logs(0.5, 0.5)) == 1
    # logits of 5: L is 5 + log 2
    assert largest_rounded(np.full((1, 2), 5.0), logs(0.5, 0.5)) == pytest.approx(5 + LOG2)


def test_renormalised_the_normalizers_error_cancels():
    """Half and a quarter chosen: M = 3/4, so that the shares are 2/3 and 1/3."""
    side = LogProbs(logs(0.5, 0.25, 0.25), np.full((1, 3), 3 * U), np.full((1, 1), 1e9), U)
    chosen = np.array([[True, True, False]])
    log_a, _ = oracle.on_support(side.value, chosen, "topk_renorm", oracle.FLOAT64)
    found = support_bounds(log_a, side, chosen, "topk_renorm")
    # (2/3 + 1/3) · 3u from the entries; the sum of two, the exponentials, the logarithm
    of_sum = U * (math.sqrt(2) + 1 + math.log(4 / 3))
    assert found.token_error.item() == pytest.approx(3 * U + of_sum)
    assert found.entry_error[0, 0] == pytest.approx(3 * U + U * math.log(1.5))
    assert found.bound[0, 2:] == pytest.approx(0)


def test_the_tail_of_one_half_moves_by_as_much_as_the_mass_inside():
    """M = 1/2: ∂ log(1 − M)/∂ log M = −1. Sum of one, exponential, logarithm: u (1 + 1 + log 2)."""
    side = exact(logs(0.5, 0.25, 0.25))
    chosen = np.array([[True, False, False]])
    log_a, _ = oracle.on_support(side.value, chosen, "topk_tail", oracle.FLOAT64)
    found = support_bounds(log_a, side, chosen, "topk_tail")
    away = U * (2 + LOG2) + 2 * U * (1 + LOG2)
    assert found.tail[0] + LOG2 == pytest.approx(np.array([-away, away]), rel=1e-4)
    assert found.tail_bound == pytest.approx(away, rel=1e-4)
    assert not found.tail_limited.any()


def test_at_its_limit_the_tail_is_either_branch():
    """The mass left is 1e-7: with an error of 1e-8 the limit is in force at one end alone."""
    tail, limited = tail_interval(np.array([-1e-7]), np.array([1e-8]), u=0.0)
    assert limited.tolist() == [[True, False]]
    assert np.exp(tail[0, 1]) == pytest.approx(1.1e-7, rel=1e-6)
    assert np.exp(tail[0, 0]) == pytest.approx(1e-7, rel=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_equal_halves_have_the_roundings_of_their_logarithms_alone(alpha):
    """A = b = 1/2 twice: all terms are zero; each log, of log 2, is rounded once on each side."""
    a = on_support(logs(0.5, 0.5, 0.0))
    g = np.array([[-0.5, -0.5, 0.0]]) if alpha == 0 else np.array([[0.5, 0.5, 0.0]])
    assert divergence_bound(a, a, g, alpha, U) == pytest.approx(2 * 0.5 * U * 2 * LOG2)


def test_errors_of_entries_and_of_the_token_pass_through_the_derivative():
    """α = 1, a = b: ∂D/∂log a = a and ∂D/∂log b = −a, of 1/2 each."""
    exact_side = on_support(logs(0.5, 0.5, 0.0))
    g = np.array([[0.5, 0.5, 0.0]])
    usual = divergence_bound(exact_side, exact_side, g, 1.0, U)
    entry = on_support(logs(0.5, 0.5, 0.0), entry_error=1e-3)
    assert divergence_bound(entry, exact_side, g, 1.0, U) - usual == pytest.approx(1e-3)
    token = on_support(logs(0.5, 0.5, 0.0), token_error=1e-3)
    assert divergence_bound(token, token, g, 1.0, U) - usual == pytest.approx(2e-3)


def test_alpha_is_rounded_in_the_mixture():
    """Shares of 3/4, 1/4 and of 1/4, 3/4 at α = 1/2: m is 1/2."""
    a, b = on_support(logs(0.75, 0.25, 0.0)), on_support(logs(0.25, 0.75, 0.0))
    _, g = oracle.divergence_and_derivative(a.log, b.log, 0.5, oracle.FLOAT64)
    # of each entry one side gives 3/4 log 3/2, the other 1/4 log 1/2, halved by α
    gain, loss = 0.75 * math.log(1.5), 0.25 * LOG2
    sizes = 2 * 0.5 * (gain + loss)
    rounded = sum(
        0.5 * p * (abs(math.log(p)) + 2 * LOG2 + LOG2 + 1) for p in (0.75, 0.25)
    )  # of each entry from a; b has the same two
    of_terms = 2 * U * rounded + 4 * U * sizes
    found = divergence_bound(a, b, g, 0.5, U)
    of_alpha = U * 0.5 * 2 * (gain + loss)
    assert found == pytest.approx(of_terms + U * math.sqrt(2) * sizes + of_alpha)


def test_the_derivative_is_as_good_as_its_factors():
    a = on_support(logs(0.5, 0.5, 0.0))
    errors = np.full((1, 3), 1e-3), np.full((1, 3), 2e-3)
    g = np.array([[-0.5, -0.5, 0.0]])
    bound = derivative_bound(g, (a, a), 0.0, errors, U)
    assert bound[0, 0] == pytest.approx(0.5 * (3e-3 + 4 * U))
    bound = derivative_bound(-g, (a, a), 1.0, errors, U)
    of_logs = 0.5 * (3e-3 + U * (2 * LOG2 + 2))
    assert bound[0, 0] == pytest.approx(0.5 * (1e-3 + 4 * U) + of_logs)
    # the mixture of equal sides: half of the difference reaches log a − log m
    bound = derivative_bound(np.zeros((1, 3)), (a, a), 0.5, errors, U)
    assert bound[0, 0] == pytest.approx(0.5 * 0.5 * (0.5 * 3e-3 + U * (2 * LOG2 + 2)))


def test_a_tail_that_moves_takes_the_farthest_corner():
    """KL(b‖a) at tails of 1/2: the term b (log b − log a) at log a ± 0.1."""
    half = np.log(np.array([[1.0, 0.5]]))
    no_error = np.zeros((1, 2)), np.zeros((1, 1))
    limited = np.zeros((1, 2), bool)
    a = SupportBounds(half, *no_error, np.array([[-LOG2 - 0.1, -LOG2 + 0.1]]), limited)
    b = SupportBounds(half, *no_error, np.array([[-LOG2, -LOG2]]), limited)
    term, rate = tail_movement(a, b, 0.0)
    assert term == pytest.approx(0.5 * 0.1)
    # ∂D/∂tail = −b ÷ a: from −1 to −e^0.1
    assert rate == pytest.approx(math.exp(0.1) - 1)


def token_of(log_p: np.ndarray, log_a: np.ndarray, g: np.ndarray, chosen: int) -> oracle.Token:
    """A token whose teacher is its student; the first entries are the support."""
    at = np.arange(log_p.shape[-1])[None] < chosen
    unlimited = np.zeros((1, 2), bool)
    zero = np.zeros(1)
    return oracle.Token(log_p, log_p, at, log_a, log_a, g, zero, np.zeros_like(log_p), unlimited)


def test_a_gradient_subtracts_p_times_a_sum():
    """α = 1, a = b = 1/2 twice: g = 1/2 each, of which p · Σg takes 1/2 away."""
    a, log_p = on_support(logs(0.5, 0.5, 0.0)), logs(0.5, 0.5)
    token = token_of(log_p, a.log, np.array([[0.5, 0.5, 0.0]]), chosen=2)
    found = slope_bound(token, exact(log_p), (a, a), Distribution("full_vocab", 1.0, U))
    of_g, operations = U * (0.5 * 4 + 0.5 * (2 * LOG2 + 2)), U * (2 + math.sqrt(2))
    total_error = 2 * of_g + operations
    assert found[0, 0] == pytest.approx(of_g + 0.5 * total_error + operations * (0.5 + 0.5))


def test_a_gradient_through_the_tail_has_the_error_of_its_rate():
    """The support and the tail are 1/2 each: the rate is one, and the gradient vanishes."""
    log_p, half = logs(0.5, 0.5), np.array([[-LOG2, -np.inf, -LOG2]])
    tail = np.full((1, 2), -LOG2), np.zeros((1, 2), bool)
    a = SupportBounds(half, np.zeros((1, 3)), np.zeros((1, 1)), *tail)
    token = token_of(log_p, half, np.array([[0.5, 0.0, 0.5]]), chosen=1)
    found = slope_bound(token, exact(log_p), (a, a), Distribution("topk_tail", 1.0, U))
    of_g = U * (0.5 * 4 + 0.5 * (2 * LOG2 + 2))
    # half of the rate's four roundings, and of the four of its product, are common and the entry's
    assert found[0, 0] == pytest.approx((of_g + 2 * U + 2 * U) * 1.5)


def test_the_sampled_token_has_the_errors_of_both_log_probs():
    """A quarter and a half: the gap of the logs is log 2."""
    case = oracle.sampled_values(logs(0.25, 0.75), logs(0.5, 0.5), np.array([0]), oracle.FLOAT64)
    p_bound, q_bound = np.full((1, 2), 1e-3), np.full((1, 2), 2e-3)
    bound, slope = sampled_bounds(case, p_bound, q_bound, U)
    of_gap, log4 = 3e-3 + U * LOG2, math.log(4)
    assert bound == pytest.approx(of_gap * log4 + LOG2 * 1e-3 + 2 * U * LOG2 * log4)
    assert slope[0, 0] == pytest.approx(
        0.75 * of_gap + LOG2 * (0.25 * 1e-3 + 4 * U * (0.75 + 0.25))
    )


def test_a_loss_of_two_tokens_has_their_errors_and_those_of_the_mean():
    """At α = 1, student 3/4 and 1/4, teacher 1/2 twice: D = 3/4 log 3/2 − 1/4 log 2."""
    student = torch.tensor([[[math.log(3), 0.0]] * 2])
    case = LossCase(
        id="pencil",
        config=SDPOConfig(alpha=1.0, distillation_topk=None, is_clip=None),
        student_logits=student,
        teacher_logits=torch.zeros(1, 2, 2),
        responses=torch.zeros(1, 2, dtype=torch.int64),
        response_mask=torch.ones(1, 2, dtype=torch.int64),
    )
    found = truth(case)
    u, smallest = 2.5 * 2.0**-24, 2.0**-126
    d = 0.75 * math.log(1.5) - 0.25 * LOG2
    assert found.values["aggregate"] == pytest.approx(d, rel=1e-6)
    each = found.bounds["divergence"] - smallest
    assert found.bounds["importance"] == pytest.approx(each + 4 * u * d, rel=1e-6)
    # half of each, two of which add up to less than three deviations; 4 + √2 roundings of the sum
    expected = (each[0] + 4 * u * d) + u * (4 + math.sqrt(2)) * d
    assert found.bounds["aggregate"] == pytest.approx(expected, rel=1e-6)
    assert found.gradient_weight.tolist() == [0.5, 0.5]
    assert found.gradient_scale == 0.5
    bounds = distribution_bounds(
        oracle.evaluate(case), found.student, found.teacher, distribution_of(case)
    )
    gradient = found.values["gradient"][0]
    assert gradient == pytest.approx(0.5 * oracle.evaluate(case).slope)
    expected = 0.5 * bounds.slope + 6 * u * np.abs(gradient)
    assert found.bounds["gradient"][0] == pytest.approx(expected, rel=1e-6)


def test_a_rounded_alpha_near_one_moves_the_derivative_by_a_thousand_roundings():
    """α = 0.999: g has the weight 1 − α, of which a rounding of α is 999 roundings."""
    a, b = on_support(logs(0.5, 0.5, 0.0)), on_support(logs(0.25, 0.75, 0.0))
    alpha = 0.999
    log_m = oracle.mixture(a.log, b.log, alpha, oracle.FLOAT64)[0, :2]
    g = np.array([[*((1 - alpha) * 0.5 * (math.log(0.5) - log_m)), 0.0]])
    nothing = np.zeros_like(g)
    found = derivative_bound(g, (a, b), alpha, (nothing, nothing), U)[0, :2]
    assert (found >= 999 * U * np.abs(g[0, :2])).all()
    assert (found <= 1020 * U * np.abs(g[0, :2]) + 5 * U * (1 - alpha)).all()
