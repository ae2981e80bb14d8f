"""The ladder's rungs: what each adds, and the first that departs."""

import math

import pytest
import torch

from sdpo.parity.explain.ladder import TOPK, RungOutcome, climb, ladder
from sdpo.parity.explain.rungs import Feature, RungResult


@pytest.fixture(scope="module")
def cases():
    return {rung.feature: rung.case for rung in ladder(torch.float64)}


def test_each_feature_has_one_rung():
    assert [rung.feature for rung in ladder(torch.float32)] == list(Feature)


def test_rungs_are_neutral_but_for_their_feature(cases):
    plain = cases[Feature.ALPHA_HALF]
    assert (plain.mode, plain.config.is_clip, plain.config.alpha) == ("full_vocab", None, 0.5)
    assert plain.loss_mask.tolist() == [[1]]
    assert cases[Feature.TAIL].config.distillation_topk == TOPK


def test_a_ratio_is_e_to_the_shift(cases):
    for feature, shift in ((Feature.RATIO_ABOVE_CAP, 1.5), (Feature.RATIO_BELOW_CAP, -0.7)):
        case = cases[feature]
        own = case.student_logits.log_softmax(-1).gather(-1, case.responses[..., None])[..., 0]
        ratio = (own - case.old_log_probs).exp().item()
        assert ratio == pytest.approx(math.exp(shift))
        assert (ratio > case.config.is_clip) == (shift > 1)


def test_a_ragged_batch_of_three_rows_counts_eight_tokens(cases):
    """Four, less one at the end of the first row; one of the second; four of the third."""
    assert cases[Feature.PADDING_ROW_MEAN].response_mask.sum(-1).tolist() == [3, 1, 4]
    assert cases[Feature.EMPTY_COLUMN_ROW_MEAN].response_mask.sum(-1).tolist() == [3, 3, 3]
    assert cases[Feature.NO_SIGNAL_ROW_MEAN].loss_mask.sum(-1).tolist() == [3, 0, 4]
    assert not cases[Feature.NOTHING_COUNTS].loss_mask.any()


def test_the_stage_of_the_first_rung_that_departs_is_named():
    def judge(case):
        departs = case.config.distillation_topk == TOPK and case.mode == "topk_tail"
        return RungOutcome(RungResult.DEPARTS if departs else RungResult.HOLDS)

    stage, rows = climb(judge, torch.float32)
    assert stage == "tail"
    departing = [row["feature"] for row in rows if row["result"] == RungResult.DEPARTS]
    assert departing[:3] == [Feature.TAIL_SAME_RANKING, Feature.TAIL, Feature.SMALL_TAIL]
