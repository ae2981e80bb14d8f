"""The measurements by which comparisons know what they can tell."""

import math

import pytest
import torch

from sdpo.parity.recorded.roundings import MANY, equal, moved
from tests.helpers.measured import Gap, alike, gap_of, gives_bits, rounding_of

EPSILON = torch.finfo(torch.float32).eps


def logits(*sizes: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))


def test_a_gap_is_the_mean_square_over_counted_tokens():
    student, counts = logits(2, 3, 50), torch.tensor([[True, True, False], [True, False, False]])
    teacher = student.clone()
    teacher[:, :, 0] += 0.5
    teacher[~counts] += torch.arange(50)
    found = gap_of(student, teacher, counts)
    sides = [side.double().log_softmax(-1)[counts] for side in (student, teacher)]
    square = (sides[1].exp() * (sides[0] - sides[1]).square()).sum(-1).mean()
    assert found.difference == pytest.approx(math.sqrt(square))
    assert (found.epsilon, gap_of(student, student, counts).difference) == (EPSILON, 0.0)


def test_rounding_is_that_of_the_log_probs_and_of_the_weights():
    gaps = [Gap(difference=0.5, size=6.0, epsilon=EPSILON), Gap(2.0, 6.0, EPSILON)]
    assert rounding_of(gaps) == pytest.approx(12 * EPSILON)
    before = {"weight": torch.ones(100)}
    after = {"weight": torch.ones(100) * 1.25}
    assert rounding_of(gaps, before, after) == pytest.approx(math.hypot(12, 2.5) * EPSILON)
    assert rounding_of(gaps, before, before) == math.inf
    assert rounding_of([]) == rounding_of([Gap(0.0, 6.0, EPSILON)]) == math.inf


def test_the_rounding_of_a_gradient_is_the_one_that_is_foretold():
    """Of a loss in float32 beside one in float64, from small differences to large ones."""
    for spread in (1e-3, 1e-2, 0.1, 1.0):
        student = logits(4, 5, 400)
        teacher = student + spread * logits(4, 5, 400, seed=1)
        found = [gradient(student.to(d), teacher.to(d)) for d in (torch.float32, torch.float64)]
        rounding = rounding_of([gap_of(student, teacher, torch.ones(4, 5, dtype=torch.bool))])
        distance = ((found[0] - found[1]).norm() / found[1].norm()).item()
        assert rounding / 30 < distance < rounding


def gradient(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    leaf = student.clone().requires_grad_()
    s, t = leaf.log_softmax(-1), teacher.log_softmax(-1)
    (s.exp() * (s - t)).sum(-1).mean().backward()
    assert leaf.grad is not None
    return leaf.grad.double()


def test_steps_are_alike_within_a_few_roundings_and_not_beyond():
    step = {"weight": logits(1000)}
    near, far = ({"weight": step["weight"] * (1 + by)} for by in (3e-5, 5e-5))
    assert alike(near, step, rounding=1e-5)
    assert not alike(far, step, rounding=1e-5)


def test_a_step_that_is_rounding_cannot_be_compared():
    step = {"weight": logits(10)}
    with pytest.raises(AssertionError, match="larger weights, or the optimizer a larger rate"):
        alike(step, step, rounding=1e-3)


def test_a_canary_that_shares_nothing_with_the_recording_measures_nothing():
    value = {"a": logits(3)}
    assert gives_bits(value, {"a": value["a"].clone(), "b": torch.ones(1)})
    assert not gives_bits(value, {"a": value["a"].nextafter(torch.tensor(9.0))})
    with pytest.raises(AssertionError, match="were recorded"):
        gives_bits(value, {"b": torch.ones(1)})


@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: [t], lambda t: {"a": t}])
def test_what_moves_by_rounding_has_not_moved(wrap):
    value = logits(1000)
    by = MANY * EPSILON
    assert not moved(wrap(value), wrap(value * (1 + 0.9 * by)))
    assert moved(wrap(value), wrap(value * (1 + 1.1 * by)))
    assert not equal(wrap(value), wrap(value * (1 + 0.9 * by)))
    assert equal(wrap(value), wrap(value.clone()))


def test_texts_masks_shapes_and_kinds_move_if_they_differ():
    ids = torch.tensor([1, 2])
    for before, after in (
        ("a", "b"),
        ([1.0], [2.0]),
        (ids, torch.tensor([1, 3])),
        (logits(3), logits(4)),
        (logits(3), logits(3).double()),
        (torch.tensor(1.0), torch.tensor(math.nan)),
        (logits(3), None),
    ):
        assert moved(before, after)
        assert not moved(before, before)
    assert not moved(torch.tensor(math.nan), torch.tensor(math.nan))
