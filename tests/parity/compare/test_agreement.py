"""Two sets of results agree within two budgets, where the reference is finite."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sdpo.fixtures import packaged_family
from sdpo.parity.cases.loss_case import loss_cases
from sdpo.parity.compare.agreement import Agreement
from sdpo.parity.compare.evaluated_case import EvaluatedCase

CASE = next(
    case
    for case in loss_cases(packaged_family("loss"))
    if case.dtype == torch.float32 and case.mode == "topk_tail"
)
EVALUATED = EvaluatedCase(CASE)


def test_results_two_budgets_away_agree_and_no_further():
    agreement = EVALUATED.agreement
    right = agreement.reference_values["aggregate"]
    budget = EVALUATED.truth.bounds["aggregate"]
    assert agreement.with_reference({"aggregate": right + 1.9 * budget})
    assert not agreement.with_reference({"aggregate": right + 2.1 * budget})


def test_another_shape_never_agrees():
    right = EVALUATED.agreement.reference_values["divergence"]
    assert not EVALUATED.agreement.with_reference({"divergence": right[:-1]})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_agrees_only_where_the_reference_is_not(value):
    broken = EVALUATED.agreement.reference_values["divergence"].copy()
    broken[0] = value
    assert not EVALUATED.agreement.with_reference({"divergence": broken})
    name = "divergence"
    undefined = EVALUATED.reference[name].clone()
    undefined[tuple(np.argwhere(EVALUATED.truth.counts)[0])] = torch.nan
    reference = {**EVALUATED.reference, name: undefined}
    assert Agreement(EVALUATED.truth, reference, CASE.dtype).with_reference({name: broken})


def test_what_does_not_count_is_no_result():
    mask = CASE.response_mask.clone()
    mask[0] = 0
    evaluated = EvaluatedCase(replace(CASE, response_mask=mask, recorded={}))
    values = evaluated.agreement.values_of(evaluated.reference)
    assert len(values["divergence"]) == int((evaluated.case.loss_mask != 0).sum())
    assert "tail.student" not in values
