"""Every recorded loss case through the fused loss: all stage values, the loss and the gradient.

Budget: the oracle's.
"""

import pytest

from sdpo.parity.compare.evaluated_case import evaluate_case
from sdpo.parity.compare.loss_stages import compare_loss
from sdpo.parity.compare.statuses import Status
from tests.helpers.recorded.fused_cases import fused_trace
from tests.helpers.recorded.loss_cases import IDS, case
from tests.helpers.spread import one_in

INFINITE = [
    case_id
    for case_id in IDS
    if case(case_id).teacher_logits[case(case_id).loss_mask != 0].isinf().any()
]
FINITE = [case_id for case_id in IDS if case_id not in INFINITE]


@pytest.mark.parametrize("case_id", one_in(3, FINITE))
def test_fused_is_within_budget_at_every_stage(case_id):
    evaluated = evaluate_case(case(case_id))
    trace = fused_trace(evaluated.case, chunk_tokens=3)
    found = compare_loss(evaluated, trace)
    assert {"aggregate", "gradient"} <= {comparison.stage for comparison in found}
    for comparison in found:
        assert comparison.status in (Status.MATCH, Status.PASS, Status.DECLARED), comparison


def test_cases_left_out_are_those_with_infinite_logits():
    assert len(INFINITE) == 6
    assert all("teacher_neg_inf" in case(case_id).tags for case_id in INFINITE)
