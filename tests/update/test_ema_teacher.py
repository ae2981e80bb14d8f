"""Teacher rules: hand-derived values, order of roundings, the stall in low precision, errors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdpo.update.ema_teacher import (
    check_teacher,
    ema_stalls,
    ema_update,
    teacher_update,
    trust_region_logits,
)


def parameters(*values: float, dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.tensor([value], dtype=dtype)) for value in values]


def numbers(tensors: list[torch.nn.Parameter]) -> list[float]:
    return [tensor.item() for tensor in tensors]


def test_the_average_by_hand():
    """0.75 * 8 + 0.25 * 4 = 7 and 0.75 * -2 + 0.25 * 6 = 0, all exact in float32."""
    teacher, student = parameters(8.0, -2.0), parameters(4.0, 6.0)
    ema_update(teacher, student, 0.25)
    assert numbers(teacher) == [7.0, 0.0]
    assert numbers(student) == [4.0, 6.0]


def test_the_average_is_in_place_and_leaves_no_graph():
    teacher, student = parameters(1.0), parameters(2.0)
    storage = teacher[0].data_ptr()
    ema_update(iter(teacher), iter(student), 0.5)
    assert teacher[0].data_ptr() == storage
    assert teacher[0].is_leaf
    assert teacher[0].grad_fn is None


def test_the_average_rounds_twice_unlike_lerp():
    generator = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(2, 1000, generator=generator)
    twice = (teacher * (1.0 - 0.05)).add(student, alpha=0.05)
    ours = teacher.clone()
    ema_update([ours], [student], 0.05)
    assert torch.equal(ours, twice)
    assert not torch.equal(ours, torch.lerp(teacher, student, 0.05))


def test_a_float32_student_is_not_rounded_to_the_teachers_dtype_first():
    """The student rounds to 1 in bfloat16, and 1 would pull the teacher down to 1."""
    teacher = parameters(1.0 + 2**-7, dtype=torch.bfloat16)
    student = parameters(1.0 + 2**-8 - 2**-12)
    ema_update(teacher, student, 0.5)
    assert teacher[0].dtype == torch.bfloat16
    assert numbers(teacher) == [1.0 + 2**-7]
    ema_update(teacher, [student[0].bfloat16()], 0.5)
    assert numbers(teacher) == [1.0]


@given(rate=st.floats(0.0, 1.0), teacher=st.floats(-8, 8, width=32), gap=st.floats(-1, 1, width=32))
def test_the_average_lies_between_the_two_sides(rate, teacher, gap):
    target, source = parameters(teacher), parameters(teacher + gap)
    ema_update(target, source, rate)
    low, high = sorted((teacher, source[0].item()))
    assert low - 2e-6 <= target[0].item() <= high + 2e-6


@pytest.mark.parametrize(
    ("student", "message"),
    [([], "2 parameters.*student .0."), ([1.0], "same shapes"), ([1.0, 2.0, 3.0], "same order")],
)
def test_another_number_of_parameters_is_an_error_before_any_change(student, message):
    teacher = parameters(8.0, 8.0)
    with pytest.raises(ValueError, match=message):
        ema_update(teacher, parameters(*student), 0.5)
    assert numbers(teacher) == [8.0, 8.0]


def test_another_shape_is_an_error_before_any_change():
    teacher = [torch.zeros(2), torch.zeros(1)]
    with pytest.raises(ValueError, match="same shapes"):
        ema_update(teacher, [torch.ones(2), torch.ones(())], 0.5)
    assert teacher[0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("rate", [0.05, 0.01, 0.3])
def test_the_stall_bound_holds_for_every_bfloat16_value(rate):
    """No gap beyond eps / rate is frozen, and some gap beyond half of it is."""
    teacher = (1 + torch.arange(128) / 128).to(torch.bfloat16)
    limit = torch.finfo(torch.bfloat16).eps / rate
    assert not unmoved(teacher, 1.001 * limit, rate).any()
    assert unmoved(teacher, 0.5 * limit, rate).any()


def unmoved(teacher: torch.Tensor, gap: float, rate: float) -> torch.Tensor:
    before = teacher.clone()
    moved = teacher.clone()
    ema_update([moved], [before.float() * (1 + gap)], rate)
    return moved == before


@pytest.mark.parametrize(
    ("dtype", "rate", "stalls"),
    [
        (torch.bfloat16, 0.05, True),
        (torch.float16, 0.05, True),
        (torch.float32, 0.05, False),
        (torch.bfloat16, 1.0, False),
        (torch.float32, 1e-6, True),
        (torch.float64, 1e-6, False),
        (torch.bfloat16, 0.0, False),
    ],
)
def test_which_dtypes_stall(dtype, rate, stalls):
    assert ema_stalls(dtype, rate) is stalls


def test_the_ends_of_the_trust_region():
    reference, student = torch.randn(2, 3, 4, 5)
    assert torch.equal(trust_region_logits(reference, student, 0.0), reference)
    assert torch.equal(trust_region_logits(reference, student, 1.0), student)
    middle = trust_region_logits(torch.tensor([2.0]), torch.tensor([6.0]), 0.25)
    assert middle.tolist() == [3.0]


@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan")])
def test_a_rate_outside_zero_to_one_is_an_error(rate):
    message = r"must be in \[0, 1\]"
    with pytest.raises(ValueError, match=message):
        trust_region_logits(torch.zeros(1), torch.zeros(1), rate)
    with pytest.raises(ValueError, match=message):
        ema_update([], [], rate)
    with pytest.raises(ValueError, match=message):
        ema_stalls(torch.float32, rate)
    with pytest.raises(ValueError, match=message):
        teacher_update([], [], teacher_update_rate=rate)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"teacher_update_rate": 0.5}, 6.0),
        ({"teacher_update_rate": 0.0}, 8.0),
        ({"teacher_update_rate": 0.5, "stepped": False}, 8.0),
        ({"teacher_update_rate": 0.5, "teacher_regularization": "trust-region"}, 8.0),
    ],
)
def test_the_stage_dispatches_on_its_settings(options, expected):
    teacher = parameters(8.0)
    teacher_update(teacher, parameters(4.0), **options)
    assert numbers(teacher) == [expected]


def test_a_frozen_teacher_may_be_absent_or_the_student_itself():
    student = parameters(4.0)
    teacher_update(None, student, teacher_update_rate=0.0)
    teacher_update(student, student, teacher_update_rate=0.0)
    assert numbers(student) == [4.0]


@pytest.mark.parametrize("regularization", ["ema", "trust-region"])
def test_a_teacher_of_its_own_is_needed(regularization):
    student = parameters(4.0, 5.0)
    with pytest.raises(ValueError, match=f"{regularization} has no teacher: give a separate copy"):
        check_teacher(None, student, teacher_regularization=regularization)
    with pytest.raises(ValueError, match=f"{regularization}: the teacher shares"):
        teacher_update(student[1:], student, teacher_regularization=regularization)


def test_an_unknown_regularization_is_named():
    with pytest.raises(ValueError, match="not 'trust_region'"):
        check_teacher(None, [], teacher_regularization="trust_region", teacher_update_rate=0.0)
