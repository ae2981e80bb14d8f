"""Distances between two traces of an update, and the budgets that they have."""

import math

import pytest
import torch

from sdpo.lockstep.reference_update import RepeatedUpdate
from sdpo.lockstep.update_distances import (
    TEACHER_MOVED,
    Delta,
    budgets,
    deltas,
    farthest,
    first_moved,
    noise,
    refused,
    sizeless,
)
from sdpo.parity.cases.stage_trace import NO_STAGE, SCALED_LOSS, Moment, Place, StageTrace
from sdpo.parity.cases.tensor_distances import match
from sdpo.parity.truth.usable_budget import shows_a_factor_of_two


def test_a_gradient_in_bfloat16_has_a_budget_though_its_roundings_agreed_by_luck():
    """A token's error of 3e-7 moves a few entries by a whole bfloat16 unit, or none."""
    unit = torch.finfo(torch.bfloat16).eps
    found = [Delta("importance", "importance", 3e-7), Delta("accumulate", "gradient", 0.0)]
    allowed = budgets(noise(found, unit), {"gradient", "weights", "teacher"})
    logits = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    moved = logits * (1 + 3e-7 * torch.randn(100_000, generator=torch.Generator().manual_seed(1)))
    exact, other = logits.bfloat16().double(), moved.bfloat16().double()
    flips = float((exact - other).norm() / exact.norm())
    assert 0 < flips < allowed["gradient"] < 100 * flips
    assert allowed["weights"] == allowed["teacher"] == allowed["gradient"]
    assert budgets(noise(found), {"gradient"})["gradient"] < flips


def test_a_great_distance_within_a_refused_budget_is_inconclusive_and_beyond_it_divergent():
    allowed = {"gradient": 2.0}
    within, beyond = (Delta("accumulate", "gradient", value) for value in (0.9, 2.1))
    assert first_moved([within], allowed) is None
    assert first_moved([beyond], allowed) is beyond
    for delta in (within, beyond):
        assert "gradient by 2 of its size" in refused([delta], allowed)
    assert refused([within], {"gradient": 0.1}) == ""


def test_a_gradient_of_exactly_zero_where_tokens_count_is_no_size_to_compare_with():
    """Without tokens zero is right, and what is not finite is never excused."""
    nothing, some = {"a": torch.zeros(3)}, {"a": torch.full((3,), 1e-9)}
    broken = {"a": torch.full((3,), math.nan)}

    def names_of(mine, theirs, counts):
        trace = StageTrace()
        trace.put(Moment(), {"loss_mask": torch.full((2, 3), counts)})
        return set(sizeless(RepeatedUpdate(trace, [match(mine, theirs)])))

    assert names_of(some, nothing, 1.0) == {"gradient", "weights", "teacher"}
    assert not shows_a_factor_of_two(math.inf)
    for case in ((some, nothing, 0.0), (nothing, nothing, 1.0), (some, some, 1.0)):
        assert names_of(*case) == set()
    assert names_of(broken, nothing, 1.0) == names_of(nothing, some, 1.0) == set()


def a_trace(gradient=1.0, **values):
    """One step of one micro-batch with two tokens, of which the first counts."""
    trace, at = StageTrace(), Moment()
    shown = {"loss_mask": torch.tensor([[1.0, 0.0]]), "aggregate": torch.tensor(2.0)}
    trace.put(at, shown | values)
    trace.put(at, {SCALED_LOSS: 2.0}, NO_STAGE)
    trace.put(at, {"w": torch.tensor([gradient])}, "accumulate")
    trace.put(at, {"w": torch.tensor([4.0])}, "optimizer")
    trace.put(at, {"w": torch.tensor([2.0])}, "teacher_update")
    return trace


def distances(actual, expected):
    start = {"w": torch.tensor([2.0])}
    repeated = RepeatedUpdate(expected, [], start, start)
    return {delta.name: delta.value for delta in deltas(actual, repeated)}


def test_a_gradient_is_compared_in_the_norm_and_weights_by_the_way_gone():
    actual = a_trace(gradient=1.5)
    actual[Place(0, 0, 0, "optimizer", "w")] = torch.tensor([5.0])
    found = distances(actual, a_trace(gradient=1.0))
    assert found["gradient"] == 0.5
    assert found["weights"] == 0.5  # 5 in place of 4, from 2
    assert found["teacher"] == found["aggregate"] == 0.0


def test_tokens_that_do_not_count_are_not_compared():
    sides = [a_trace(importance=torch.tensor([[1.0, other]])) for other in (7.0, 9.0)]
    assert distances(*sides)["importance"] == 0.0


def test_a_teacher_that_moved_during_an_update_is_too_early():
    actual = a_trace()
    actual.put(Moment(), {TEACHER_MOVED: True}, NO_STAGE)
    assert distances(actual, a_trace())["too early"] == math.inf
    assert distances(a_trace(), a_trace())["too early"] == 0.0


def test_texts_are_equal_or_infinitely_far_apart():
    same, other = a_trace(feedback=["a"]), a_trace(feedback=["b"])
    assert distances(same, a_trace(feedback=["a"]))["feedback"] == 0.0
    assert distances(other, same)["feedback"] == math.inf


def test_another_number_of_optimizer_steps_is_refused():
    actual = a_trace()
    actual.put(Moment(0, 1, 0), {"w": torch.tensor([1.0])}, "accumulate")
    with pytest.raises(ValueError, match=r"optimizer steps \[0, 1\], expected \[0\]"):
        distances(actual, a_trace())


def test_noise_is_the_largest_of_a_kind_and_a_loss_no_less_than_its_tokens():
    found = noise([Delta("importance", "importance", v) for v in (3e-7, 1e-7)])
    assert found["importance"] == found["aggregate"] == 3e-7
    assert found["gradient"] == 0.0


def test_of_several_processes_the_farthest_counts():
    near, far = (Delta("optimizer", "weights", value) for value in (1.0, 2.0))
    assert farthest([[near], [far]]) == [far]
