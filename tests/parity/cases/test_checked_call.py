"""One checked call of a loss function: its value and gradient, and each way to fail."""

import pytest
import torch

from sdpo.parity.cases.checked_call import (
    INTO_TEACHER,
    NO_GRAPH,
    BrokenGradientError,
    CandidateError,
    checked_call,
    guarded,
    same_bits,
)


def call(function):
    student = torch.tensor([3.0], requires_grad=True)
    teacher = torch.tensor([2.0], requires_grad=True)
    return checked_call(function, {}, (student, teacher), {"student": student}, (student, teacher))


def test_the_loss_and_its_gradient_are_returned():
    """The square of three is nine, its slope six."""
    found = call(lambda student, teacher: (student**2).sum())
    assert (found["aggregate"].item(), found["gradient"].tolist()) == (9.0, [6.0])


def test_a_number_without_a_graph_is_a_broken_gradient():
    with pytest.raises(BrokenGradientError, match=NO_GRAPH) as error:
        call(lambda student, teacher: student.detach().sum())
    assert error.value.trace["aggregate"].item() == 3.0


def test_a_gradient_into_the_teacher_is_broken_and_one_of_zero_is_not():
    with pytest.raises(BrokenGradientError, match=INTO_TEACHER):
        call(lambda student, teacher: (student * teacher).sum())
    found = call(lambda student, teacher: (student + 0 * teacher).sum())
    assert found["gradient"].tolist() == [1.0]


def test_an_input_changed_in_place_is_an_error():
    def loss(student, teacher):
        with torch.no_grad():
            student += 1
        return student.sum()

    with pytest.raises(CandidateError, match="changed its input student in place"):
        call(loss)


def test_whatever_a_candidate_raises_is_its_failure_without_addresses():
    def leave():
        raise SystemExit("object at 0x7f00aa11bb22")

    with pytest.raises(CandidateError, match=r"raised SystemExit: object at 0x…$") as error:
        guarded("tail", leave)
    assert error.value.stage == "tail"


def test_an_error_of_no_stage_is_a_defect():
    with pytest.raises(ValueError, match="must be one of"):
        CandidateError("nowhere", "failed")


def test_bits_are_the_same_where_nan_is_in_one_dtype_and_shape():
    nan = torch.tensor([1.0, torch.nan])
    assert same_bits(nan, nan.clone())
    assert not same_bits(nan, torch.tensor([1.0, 2.0]))
    assert not same_bits(torch.ones(2), torch.ones(2).double())
    assert not same_bits(torch.ones(2), torch.ones(1, 2))
