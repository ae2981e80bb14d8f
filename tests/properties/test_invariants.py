"""Metamorphic relations of our loss, each tied to a reported pain.

Tolerances: twice the oracle's budget where two evaluations are compared, exact where nothing may
change.
"""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from sdpo.loss.divergence import divergence
from sdpo.parity.candidates.implementations import Own
from sdpo.parity.cases.loss_case import LossCase
from sdpo.parity.truth.budget import truth
from sdpo.settings.config import SDPOConfig
from tests.helpers.loss_inputs import loss_cases

SETTINGS = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
FLOATS = (torch.float32, torch.float64)


def run(case: LossCase) -> tuple[torch.Tensor, torch.Tensor]:
    trace = Own().trace(case)
    return trace["aggregate"].double(), trace["gradient"].double()


def agree(case: LossCase, other: tuple[torch.Tensor, torch.Tensor], mapping=None) -> bool:
    """Whether loss and gradient agree with those of `case` within twice its budget."""
    loss, gradient = run(case)
    bounds = truth(case).bounds
    mapped = gradient if mapping is None else mapping(gradient)
    limit = torch.from_numpy(bounds["gradient"])
    limit = 2 * (limit if mapping is None else mapping(limit))
    near = abs(loss - other[0]) <= 2 * float(bounds["aggregate"])
    return bool(near) and bool(((mapped - other[1]).abs() <= limit).all())


@SETTINGS
@given(loss_cases(dtypes=FLOATS), st.randoms(use_true_random=False))
def test_permuting_rows_changes_nothing(case, random):
    order = list(range(len(case.responses)))
    random.shuffle(order)
    moved = {
        name: getattr(case, name)[order]
        for name in (
            "student_logits",
            "teacher_logits",
            "responses",
            "response_mask",
            "old_log_probs",
            "self_distillation_mask",
        )
    }
    if case.rollout_is_weights is not None:
        moved["rollout_is_weights"] = case.rollout_is_weights[order]
    assert agree(case, run(replace(case, **moved)), lambda x: x[order])


@SETTINGS
@given(loss_cases(dtypes=FLOATS, modes=("full_vocab",)), st.randoms(use_true_random=False))
def test_permuting_the_vocabulary_changes_nothing(case, random):
    order = list(range(case.student_logits.shape[-1]))
    random.shuffle(order)
    inverse = torch.argsort(torch.tensor(order))
    moved = replace(
        case,
        student_logits=case.student_logits[..., order],
        teacher_logits=case.teacher_logits[..., order],
        responses=inverse[case.responses],
    )
    assert agree(case, run(moved), lambda x: x[..., order])


@SETTINGS
@given(loss_cases(dtypes=(torch.float64,)), st.sampled_from([-4.0, 16.0]))
def test_shifting_all_logits_by_a_constant_changes_nothing(case, shift):
    # powers of two on a coarse grid: the shifted logits are exact
    grid = replace(
        case,
        student_logits=(case.student_logits * 64).round() / 64,
        teacher_logits=(case.teacher_logits * 64).round() / 64,
    )
    moved = replace(
        grid,
        student_logits=grid.student_logits + shift,
        teacher_logits=grid.teacher_logits + shift,
    )
    moved_bounds, bounds = truth(moved).bounds, truth(grid).bounds
    loss, gradient = run(grid)
    other_loss, other_gradient = run(moved)
    limit = bounds["aggregate"] + moved_bounds["aggregate"]
    assume(not (truth(grid).ties.certain != truth(grid).ties.possible).any())
    assert abs(loss - other_loss) <= float(limit)
    both = torch.from_numpy(bounds["gradient"] + moved_bounds["gradient"])
    assert bool(((gradient - other_gradient).abs() <= both).all())


@SETTINGS
@given(loss_cases(dtypes=FLOATS), st.integers(1, 3), st.booleans())
def test_padding_columns_change_nothing(case, columns, left):
    """Left or right, whatever the padding holds; sum-norm divides by the width by definition."""
    assume(case.config.loss_agg_mode != "seq-mean-token-sum-norm")
    rows, width = len(case.responses), case.student_logits.shape[-1]

    def pad(tensor, value):
        filler = torch.full((rows, columns, *tensor.shape[2:]), value, dtype=tensor.dtype)
        return torch.cat([filler, tensor] if left else [tensor, filler], dim=1)

    padded = replace(
        case,
        student_logits=pad(case.student_logits, math.nan),
        teacher_logits=pad(case.teacher_logits, math.inf),
        responses=pad(case.responses, width - 1),
        response_mask=pad(case.response_mask, 0),
        old_log_probs=pad(case.old_log_probs, math.nan),
        rollout_is_weights=None
        if case.rollout_is_weights is None
        else pad(case.rollout_is_weights, math.nan),
    )
    loss, gradient = run(padded)
    assert not gradient[:, :columns].any() if left else not gradient[:, -columns:].any()
    inside = gradient[:, columns:] if left else gradient[:, :-columns]
    assert agree(case, (loss, inside))


@SETTINGS
@given(loss_cases(dtypes=FLOATS, least_rows=2))
def test_a_masked_row_is_a_removed_row(case):
    keep = case.self_distillation_mask != 0
    assume(bool(keep.any()) and not bool(keep.all()))
    names = ("student_logits", "teacher_logits", "responses", "response_mask", "old_log_probs")
    moved = {name: getattr(case, name)[keep] for name in names}
    moved["self_distillation_mask"] = case.self_distillation_mask[keep]
    if case.rollout_is_weights is not None:
        moved["rollout_is_weights"] = case.rollout_is_weights[keep]
    loss, gradient = run(replace(case, **moved))
    whole = run(case)
    assert not whole[1][~keep].any()
    assert agree(case, (loss, gradient), lambda x: x[keep])


@SETTINGS
@given(loss_cases())
def test_an_empty_batch_is_finite_with_zero_gradient(case):
    empty = replace(case, self_distillation_mask=torch.zeros(len(case.responses)))
    loss, gradient = run(empty)
    assert loss == 0
    assert not gradient.any()


@SETTINGS
@given(loss_cases(dtypes=FLOATS, modes=("topk_tail", "topk_renorm", "full_vocab")))
def test_divergence_is_never_negative_and_zero_for_equal_sides(case):
    trace = Own().trace(case)
    counts = case.loss_mask != 0
    bound = torch.from_numpy(truth(case).bounds["divergence"])
    assert bool((trace["divergence"].double()[counts] >= -bound).all())
    equal = replace(case, teacher_logits=case.student_logits.clone())
    bound = torch.from_numpy(truth(equal).bounds["divergence"])
    value = Own().trace(equal)["divergence"].double()[counts]
    assert bool((value.abs() <= bound).all())


@SETTINGS
@given(loss_cases(dtypes=FLOATS))
def test_no_gradient_reaches_the_teacher(case):
    from sdpo.loss.self_distillation import self_distillation_loss

    student = case.student_logits.clone().requires_grad_(True)
    teacher = case.teacher_logits.clone().requires_grad_(True)
    loss = self_distillation_loss(
        student,
        teacher,
        case.responses,
        case.response_mask,
        old_log_probs=case.old_log_probs,
        self_distillation_mask=case.self_distillation_mask,
        config=case.config,
    )
    gradients = torch.autograd.grad(loss, [student, teacher], allow_unused=True)
    assert gradients[0] is not None
    assert gradients[1] is None


@pytest.mark.parametrize("alpha", [1e-3, 1 - 1e-3])
def test_mixture_tends_to_zero_and_not_to_the_pure_divergences(alpha):
    """The reference is discontinuous at the ends of alpha, and so are we, on purpose."""
    torch.manual_seed(1)
    student = torch.randn(1, 1, 20, dtype=torch.float64).log_softmax(-1)
    teacher = torch.randn(1, 1, 20, dtype=torch.float64).log_softmax(-1)
    end = divergence(student, teacher, alpha=float(round(alpha))).item()
    near = divergence(student, teacher, alpha=alpha).item()
    assert near < 0.01 * end


@pytest.mark.parametrize("loss_agg_mode", ["token-mean", "seq-mean-token-mean"])
def test_micro_batch_split_moves_the_mean_of_means(loss_agg_mode):
    """Inherited from the reference: each micro-batch is normalised by its own tokens or rows."""
    torch.manual_seed(2)
    shape = (2, 4, 12)
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]])
    case = LossCase(
        id="split",
        config=SDPOConfig(distillation_topk=None, is_clip=None, loss_agg_mode=loss_agg_mode),
        student_logits=torch.randn(shape, dtype=torch.float64),
        teacher_logits=torch.randn(shape, dtype=torch.float64),
        responses=torch.zeros(2, 4, dtype=torch.int64),
        response_mask=mask,
    )
    names = ("student_logits", "teacher_logits", "responses", "response_mask")
    parts = [
        run(replace(case, **{name: getattr(case, name)[row : row + 1] for name in names}))[0]
        for row in range(2)
    ]
    whole, mean = run(case)[0], sum(parts) / 2
    moved = abs(float(whole - mean)) > 1e-3
    assert moved == (loss_agg_mode == "token-mean")
