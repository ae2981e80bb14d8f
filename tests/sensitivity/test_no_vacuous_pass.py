"""What a PASS excludes: dead gradients, changes below a usual `atol`, and how small a change."""

import numpy as np
import pytest
import torch

from sdpo.fixtures import packaged_family
from sdpo.parity.cases.loss_case import LossCase, loss_cases
from sdpo.parity.compare.comparison import Comparison
from sdpo.parity.compare.evaluated_case import evaluate_case
from sdpo.parity.compare.loss_stages import ORDER, compare_loss
from sdpo.parity.compare.statuses import Status
from sdpo.settings.config import SDPOConfig
from tests.helpers.spread import one_in

CASES = {case.id: case for case in loss_cases(packaged_family("loss"))}
STAGES = ("log_probs.student", "divergence", "importance", "aggregate", "gradient")


def compared(case: LossCase, **changed: torch.Tensor) -> list[Comparison]:
    evaluated = evaluate_case(case)
    return compare_loss(evaluated, {**evaluated.reference, **changed})


def status(case: LossCase, stage: str, **changed: torch.Tensor) -> list[str]:
    return [c.status for c in compared(case, **changed) if c.stage == stage]


def long_batch() -> LossCase:
    """A batch so long that no element of the gradient reaches 1e-5."""
    generator = torch.Generator().manual_seed(5)
    shape = (8, 250, 64)
    student = torch.randn(shape, generator=generator)
    return LossCase(
        id="long batch",
        config=SDPOConfig(distillation_topk=None, is_clip=None),
        student_logits=student,
        teacher_logits=student + 0.1 * torch.randn(shape, generator=generator),
        responses=torch.zeros(shape[:2], dtype=torch.int64),
        response_mask=torch.ones(shape[:2], dtype=torch.int64),
    )


@pytest.mark.parametrize("case", one_in(3, CASES.values()), ids=CASES.keys())
def test_a_zero_gradient_never_passes(case):
    """At every dtype; the only exception is a true gradient of zero to working precision."""
    evaluated = evaluate_case(case)
    gradient = evaluated.reference["gradient"]
    size = np.abs(np.nan_to_num(evaluated.truth.values["gradient"])).max()
    if size <= torch.finfo(case.dtype).eps * evaluated.truth.gradient_scale:
        assert {"identical", "near_one_hot", "huge_logits"} & set(
            case.tags
        ) or not case.loss_mask.any()
        return
    assert status(case, "gradient", gradient=torch.zeros_like(gradient)) == [Status.DIVERGENT]


def test_a_gradient_below_a_usual_atol_is_judged():
    case = long_batch()
    gradient = evaluate_case(case).reference["gradient"]
    dead = torch.zeros_like(gradient)
    torch.testing.assert_close(dead, gradient)  # the default tolerance sees nothing
    assert status(case, "gradient", gradient=dead) == [Status.DIVERGENT]
    assert status(case, "gradient", gradient=gradient * 1.001) == [Status.DIVERGENT]
    assert status(case, "gradient", gradient=gradient + 1e-8) == [Status.DIVERGENT]


def flips_at(case: LossCase, name: str) -> float:
    """The smallest relative change of an element, found by bisection, that changes the verdict."""
    reference = evaluate_case(case).reference[name].double()
    stage = name.split(".")[0]
    # only elements that count; a change is exact in float64
    index = most_sensitive(case, name)

    def diverges(relative: float) -> bool:
        changed = reference.clone()
        changed[index] = changed[index] * (1 + relative)
        return Status.DIVERGENT in status(case, stage, **{name: changed})

    low, high = 1e-18, 1e3
    assert diverges(high)
    for _ in range(60):
        middle = float(np.sqrt(low * high))
        low, high = (low, middle) if diverges(middle) else (middle, high)
    return high


def most_sensitive(case: LossCase, name: str) -> tuple[int, ...]:
    """The element whose allowance is the smallest part of it."""
    evaluated = evaluate_case(case)
    reference = evaluated.reference[name].double().numpy()
    bound = np.full(reference.shape, np.inf)
    truth = np.zeros(reference.shape)
    if name in ("aggregate", "gradient"):
        bound, truth = evaluated.truth.bounds[name], evaluated.truth.values[name]
    else:
        bound[evaluated.truth.counts], truth[evaluated.truth.counts] = (
            evaluated.truth.bounds[name],
            evaluated.truth.values[name],
        )
    allowed = bound + np.minimum(np.abs(reference - truth), bound)
    with np.errstate(all="ignore"):
        share = np.where(reference != 0, allowed / np.abs(reference), np.inf)
    return tuple(int(i) for i in np.unravel_index(np.argmin(share), share.shape))


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("case_id", ["P-L005", "P-L018", "P-L030", "P-L046"])
def test_the_smallest_detectable_change_is_what_is_reported(case_id, name):
    case = CASES[case_id]
    stage = name.split(".")[0]
    reported = [
        c.smallest_detectable
        for c in compared(case)
        if c.stage == stage and c.smallest_detectable is not None
    ]
    assert flips_at(case, name) == pytest.approx(min(reported), rel=0.5)


def test_what_float32_detects():
    """The stages of the loss see one part in ten thousand or less, in an ordinary case."""
    found = {c.stage: c.smallest_detectable for c in compared(CASES["P-L005"])}
    assert found.keys() == set(ORDER)
    assert all(size is not None and size < 1e-4 for size in found.values()), found
