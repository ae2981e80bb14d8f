"""Which stage is believed to be the first: inferred ones against what was seen."""

from dataclasses import replace

import pytest
import torch

from sdpo.parity.compare.comparison import Comparison
from sdpo.parity.compare.evaluated_case import EvaluatedCase, Observation
from sdpo.parity.compare.statuses import Status
from sdpo.parity.compare.verdict import CaseResult
from sdpo.parity.explain.first_departure import Departure, dtypes_of, rung_outcome
from sdpo.parity.explain.rungs import RungResult
from sdpo.parity.relations.transformed_cases import generated


def test_a_loss_that_shows_nothing_else_may_depart_at_any_stage_of_the_loss_before():
    found = Departure("aggregate", suspected="tail")
    assert found.possible[0] == "log_probs"
    assert found.possible[-1] == "aggregate"
    assert (found.inferred, found.stage) == (True, "tail")


def test_a_stage_after_the_observed_one_or_before_one_that_held_is_not_believed():
    assert Departure("divergence", suspected="gradient").stage == "divergence"
    held = Departure("aggregate", suspected="support", held="divergence")
    assert held.possible == ("importance", "aggregate")
    assert held.stage == "aggregate"


def test_a_gradient_may_be_wrong_by_any_stage_though_its_value_holds():
    assert Departure("gradient", suspected="tail", held="aggregate").stage == "tail"


def outcome(loss: Status, gradient: Status, **worst: float):
    found = [Comparison("aggregate", loss, worst=worst), Comparison("gradient", gradient)]
    return rung_outcome(CaseResult("", "loss", comparisons=found))


@pytest.mark.parametrize(
    ("loss", "gradient", "result"),
    [
        (Status.PASS, Status.MATCH, RungResult.HOLDS),
        (Status.PASS, Status.DIVERGENT, RungResult.ONLY_GRADIENT_DEPARTS),
        (Status.DIVERGENT, Status.PASS, RungResult.ONLY_LOSS_DEPARTS),
        (Status.DIVERGENT, Status.DIVERGENT, RungResult.DEPARTS),
        (Status.ERROR, Status.PASS, RungResult.UNUSABLE),
    ],
)
def test_a_rung_says_whether_loss_and_gradient_hold(loss, gradient, result):
    assert outcome(loss, gradient, actual=3.0, expected=2.0).result == result


def test_the_factor_is_the_loss_divided_by_the_references():
    departs = (Status.DIVERGENT, Status.DIVERGENT)
    assert outcome(*departs, actual=3.0, expected=2.0).factor == 1.5
    assert outcome(*departs, actual=3.0, expected=0.0).factor is None


def observation(dtype: torch.dtype, diverges: bool) -> Observation:
    case = generated("some", 1)
    return Observation(
        EvaluatedCase(replace(case, student_logits=case.student_logits.to(dtype))), diverges, {}
    )


def test_the_ladder_is_climbed_in_the_dtypes_that_diverge_float32_first():
    low, single = torch.bfloat16, torch.float32
    assert dtypes_of([observation(low, True), observation(single, False)]) == [low]
    assert dtypes_of([observation(low, True), observation(single, True)]) == [single, low]
    assert dtypes_of([]) == [single]
