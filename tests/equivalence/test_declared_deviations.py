"""Each intended difference of our loss from the reference: both sides, and its declaration."""

import pytest
import torch

from sdpo.parity.candidates.implementations import Own
from sdpo.parity.compare.improvements import UNDEFINED_LOSS, ZERO_PROBABILITY, improvements
from sdpo.parity.compare.statuses import Status
from sdpo.parity.compare.verdict import CaseResult, improvement_rows
from tests.helpers.recorded.loss_cases import FAMILY, case, comparisons, recorded


def ids(tag: str) -> list[str]:
    return [golden.id for golden in FAMILY if tag in golden.tags]


@pytest.mark.parametrize("case_id", [i for i in ids("teacher_neg_inf") if i not in ("P-L132",)])
def test_teacher_with_probability_zero_contributes_zero(case_id):
    """D01: the reference computes 0 · inf = NaN for alpha below 1; ours is the definition."""
    loss = recorded(case_id)["out.loss"]
    ours = Own().trace(case(case_id))["aggregate"]
    if case(case_id).config.alpha < 1:
        assert loss.isnan()
        assert ours.isfinite()
    else:
        assert torch.equal(ours, loss), "infinite by definition, on both sides"


@pytest.mark.parametrize("case_id", ids("nan_at_masked_position"))
def test_nan_in_padding_reaches_neither_loss_nor_gradient(case_id):
    trace = Own().trace(case(case_id))
    assert not recorded(case_id)["out.grad_student_logits"].isfinite().all()
    assert trace["aggregate"].isfinite()
    assert trace["gradient"].isfinite().all()


@pytest.mark.parametrize(
    "case_id", ids("all_masked_by_sd_mask") + ids("all_masked_by_response_mask")
)
def test_empty_batch_has_loss_zero_and_gradient_zero(case_id):
    trace = Own().trace(case(case_id))
    assert trace["aggregate"] == 0
    assert not trace["gradient"].any()


def test_every_improvement_but_the_clamp_is_seen_and_no_divergence_is_left():
    results = [
        CaseResult(golden.id, "loss", tuple(golden.tags), comparisons(golden.id))
        for golden in FAMILY
    ]
    assert {r.status for r in results} <= {
        Status.MATCH,
        Status.PASS,
        Status.DECLARED,
        Status.NOT_COVERED,
    }
    seen = {row.effect: row for row in improvement_rows(results)}
    assert seen.keys() == improvements().keys() - {UNDEFINED_LOSS}
    assert seen[ZERO_PROBABILITY].cases == ["P-L126", "P-L127", "P-L129", "P-L130"]
    for result in results:
        for found in result.comparisons:
            if found.effect in improvements():
                entry = improvements()[found.effect]
                assert (found.status, found.stage in entry.stages) == (Status.DECLARED, True)
                assert entry.reason in found.note
