"""Half precision is also judged as a whole: size and direction, beside each element."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from sdpo.fixtures import packaged_family
from sdpo.parity.candidates.implementations import Own
from sdpo.parity.cases.loss_case import LossCase, loss_cases
from sdpo.parity.compare.evaluated_case import evaluate_case
from sdpo.parity.compare.loss_stages import compare_loss
from sdpo.parity.compare.statuses import Status
from sdpo.parity.explain.ladder import ladder
from sdpo.parity.faults.evaluate_fault import fault_trace
from sdpo.parity.truth.norm_limit import norm_limit
from sdpo.parity.truth.oracle import array_of
from sdpo.settings.config import SDPOConfig
from sdpo.settings.determinism import deterministic
from tests.helpers.correct_variants import VARIANTS, applies

HALF = 0.5
JUDGED = ("divergence", "importance", "aggregate", "gradient")


@cache
def cases_of(dtype: torch.dtype) -> list[LossCase]:
    recorded = loss_cases(packaged_family("loss"))
    own = [case for case in recorded if case.dtype == dtype and case.tags == ("core",)]
    generated = [rung.case for rung in ladder(dtype)]
    # a cap of 1e10 is no number of float16
    return own or [case for case in generated if (case.config.is_clip or 0) < 6e4]


def gradient_status(case: LossCase, change) -> str:
    evaluated = evaluate_case(case)
    trace = {**evaluated.reference, "gradient": change(evaluated.reference["gradient"])}
    found = compare_loss(evaluated, trace)
    return next(c.status for c in found if c.stage == "gradient")


def rotated(gradient: torch.Tensor) -> torch.Tensor:
    other = gradient.roll(1, -1)
    return other * (gradient.norm() / other.norm())


FAULTS = {
    "twice": lambda g: 2 * g,
    "a tenth too large": lambda g: 1.1 * g,
    "half": lambda g: 0.5 * g,
    "of the wrong sign": lambda g: -g,
    "rotated": rotated,
    "zero": torch.zeros_like,
}
OFTEN = {"a tenth too large": 0.15}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_a_gradient_of_another_size_or_direction_fails(dtype, name):
    with deterministic():
        cases = [c for c in cases_of(dtype) if evaluate_case(c).reference["gradient"].any()]
        found = [gradient_status(case, FAULTS[name]) == Status.DIVERGENT for case in cases]
    assert sum(found) >= OFTEN.get(name, 0.95) * len(found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_correct_evaluation_uses_half_at_most(dtype):
    worst = 0.0
    with deterministic():
        for case in cases_of(dtype):
            evaluated = evaluate_case(case)
            limits = {n: norm_limit(n, case, evaluated.truth, evaluated.reference) for n in JUDGED}
            for name, parts in VARIANTS.items():
                if not applies(name, case):
                    continue
                trace = fault_trace(parts, case)
                for stage, limit in limits.items():
                    if limit is None:
                        continue
                    value, true = array_of(trace[stage]), evaluated.truth.values[stage]
                    if stage in ("divergence", "importance"):
                        value = value[evaluated.truth.counts]
                    share = float(((value - true) ** 2).sum() ** 0.5) / limit
                    assert share <= HALF, (case.id, name, stage, share)
                    worst = max(worst, share)
    assert worst > 0.2


def sampled_token(seed: int) -> LossCase:
    """Two tokens of few candidates in bfloat16: log-probs of hundredths, from logits of seven."""
    generator = torch.Generator().manual_seed(seed)
    logits = [(16 * torch.rand(1, 2, 4, generator=generator) - 8).bfloat16() for _ in range(2)]
    return LossCase(
        id=f"sampled {seed}",
        config=SDPOConfig(full_logit_distillation=False, alpha=1.0, is_clip=None),
        student_logits=logits[0],
        teacher_logits=logits[1],
        responses=torch.randint(4, (1, 2), generator=generator),
        response_mask=torch.ones(1, 2, dtype=torch.int64),
    )


def test_rounded_log_probs_of_likely_tokens_are_no_fault():
    for seed in range(200):
        case = sampled_token(seed)
        evaluated = evaluate_case(case)
        found = compare_loss(evaluated, Own().trace(case))
        assert Status.DIVERGENT not in {comparison.status for comparison in found}, (case, found)
        loss = evaluated.truth.values["divergence"]
        doubled = gradient_status(case, FAULTS["twice"]) == Status.DIVERGENT
        assert doubled or abs(loss).max() < 3, (case, loss)


def test_a_difference_of_log_probs_may_be_rounded_away():
    """Log-probs of -10.44 and -10.46 are the same number in bfloat16."""
    case = replace(
        sampled_token(0),
        student_logits=torch.tensor([[[0.0, -10.4375, -60.0]]], dtype=torch.bfloat16),
        teacher_logits=torch.tensor([[[0.0, -10.4375, -4.0]]], dtype=torch.bfloat16),
        responses=torch.tensor([[1]]),
        response_mask=torch.tensor([[1]]),
    )
    evaluated = evaluate_case(case)
    assert abs(evaluated.truth.values["gradient"]).max() > 0.01
    assert gradient_status(case, torch.zeros_like) != Status.DIVERGENT
    assert gradient_status(case, lambda g: g + 1) == Status.DIVERGENT


def limit_of(name: str, values: torch.Tensor, size: float = 1.0) -> float | None:
    """The limit of a bfloat16 value `(B, T)` whose reference is the oracle's; one token is `size`.

    Roundoff is 2⁻⁸ in bfloat16.
    """
    rows, tokens = values.shape
    case = LossCase(
        id="arithmetic",
        config=SDPOConfig(distillation_topk=None, is_clip=None),
        student_logits=torch.zeros(rows, tokens, 2, dtype=torch.bfloat16),
        teacher_logits=torch.ones(rows, tokens, 2, dtype=torch.bfloat16),
        responses=torch.zeros(rows, tokens, dtype=torch.int64),
        response_mask=torch.ones(rows, tokens, dtype=torch.int64),
    )
    truth = evaluate_case(case).truth
    gradient = values[..., None] * torch.tensor([0.6, -0.8])
    exact = {"divergence": array_of(values)[truth.counts], "gradient": array_of(gradient)}
    truth = replace(
        truth, values=truth.values | exact, gradient_weight=np.full(rows * tokens, size)
    )
    return norm_limit(name, case, truth, {"divergence": values, "gradient": gradient})


def test_a_lucky_reference_leaves_room_for_a_few_roundings():
    """Four tokens: the scale of D is one for each, two in the norm."""
    one, small = torch.full((2, 2), 0.5), torch.full((2, 2), 0.125)
    # of norm 1: six times four roundings of it; of norm 1/4: six times one rounding of the scale
    assert limit_of("divergence", one) == pytest.approx(6 * 4 * 1 / 256)
    assert limit_of("divergence", small) == pytest.approx(6 * 1 * 2 / 256)
    # the gradient's scale counts half
    assert limit_of("gradient", small, size=3.0) == pytest.approx(6 * 0.5 * 3 * 2 / 256)


def test_a_value_of_a_few_roundings_has_no_limit_in_the_norm():
    """Eight roundings of a scale of two are 1/16 in the norm, 1/32 for each of four tokens."""
    assert limit_of("divergence", torch.full((2, 2), 1 / 32)) is None
    assert limit_of("divergence", torch.full((2, 2), 1.01 / 32)) is not None


def test_the_loss_of_a_few_tokens_has_no_limit_in_the_norm():
    assert limit_of("divergence", torch.full((1, 3), 0.5)) is None
    assert limit_of("divergence", torch.full((1, 4), 0.5)) is not None
    assert limit_of("gradient", torch.full((1, 1), 0.5)) is not None


def test_float32_and_a_gradient_of_rounding_noise_have_no_limit_in_the_norm():
    with deterministic():
        single = cases_of(torch.float32)[0]
        evaluated = evaluate_case(single)
        assert norm_limit("gradient", single, evaluated.truth, evaluated.reference) is None
        equal = next(c for c in loss_cases(packaged_family("loss")) if c.id == "P-L123")
        evaluated = evaluate_case(equal)
        assert norm_limit("gradient", equal, evaluated.truth, evaluated.reference) is None
