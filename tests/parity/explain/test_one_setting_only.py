"""One setting, or one dtype, that tells the cases where a candidate departs from the others."""

from dataclasses import replace

import pytest
import torch

from sdpo.parity.compare.evaluated_case import EvaluatedCase, Observation
from sdpo.parity.explain.explanation_rows import OneDtypeOnly
from sdpo.parity.explain.one_setting_only import condition, departs_only
from sdpo.parity.relations.transformed_cases import generated

CASE = generated("some", 1)


def with_alpha(alpha: float):
    return replace(CASE, config=replace(CASE.config, alpha=alpha))


def test_the_first_setting_that_no_spared_case_has_is_named():
    assert condition([with_alpha(0.0)], [with_alpha(0.5), with_alpha(1.0)]) == "alpha 0"
    assert condition([with_alpha(0.0), with_alpha(1.0)], [CASE]) == "alpha 0 or 1"


def test_a_setting_that_both_have_names_nothing():
    assert condition([CASE], [CASE]) == ""


def observation(dtype: torch.dtype, diverges: bool, alpha: float = 0.5) -> Observation:
    return Observation(EvaluatedCase(with_alpha(alpha)), diverges, {}, given=dtype)


def test_one_dtype_is_blamed_where_half_of_its_cases_hold_in_another():
    low, high = torch.bfloat16, torch.float32
    found = departs_only(
        [observation(low, True), observation(low, False), observation(high, False)]
    )
    assert found == OneDtypeOnly("bfloat16", 1, 2, {"float32": 1})
    half = [observation(low, True), observation(low, True, alpha=0.0), observation(high, False)]
    assert departs_only(half) is not None
    assert departs_only([*half, observation(low, True, alpha=1.0)]) is None


@pytest.mark.parametrize("diverge", [(), (torch.bfloat16, torch.float32)])
def test_none_and_two_dtypes_are_not_blamed(diverge):
    dtypes = (torch.bfloat16, torch.float32)
    assert departs_only([observation(dtype, dtype in diverge) for dtype in dtypes]) is None
