"""Which values a loss takes, and generated cases that are moved there."""

import pytest
import torch

from sdpo.parity.audit.run_loss_cases import judge_loss_case, run_loss_case
from sdpo.parity.candidates.implementations import reference_loss
from sdpo.parity.candidates.loss_functions import FromLogits
from sdpo.parity.cases.checked_call import CandidateError
from sdpo.parity.compare.statuses import FAILING, Status
from sdpo.parity.explain.first_departure import locate
from sdpo.parity.generated.covering_array import covering_rows
from sdpo.parity.generated.factors import table
from sdpo.parity.generated.make_case import make_again
from sdpo.parity.generated_runs.run_generated import cases_within
from sdpo.settings.config import SDPOConfig
from sdpo.settings.determinism import deterministic
from tests.helpers.narrow_losses import CORRECT, WRONG

MANY = 80
"""Generated cases that any of the narrow losses is asked, at least."""


def spread(candidate, step):
    return list(cases_within(candidate.reach, 0))[::step]


def test_a_loss_that_takes_everything_lacks_nothing_and_moves_nothing():
    reach = FromLogits("all", reference_loss).reach
    assert reach is not None
    assert reach.lacks == []
    assert all(reach.row(row) == row for row in covering_rows())


@pytest.mark.parametrize("narrow", CORRECT, ids=lambda narrow: narrow.loss.__name__)
def test_a_narrow_loss_is_asked_tens_of_cases_and_passes(narrow):
    candidate = FromLogits("narrow", narrow.loss)
    assert candidate.reach is not None
    assert sorted(candidate.reach.lacks) == sorted(narrow.lacks)
    assert len(spread(candidate, 1)) >= MANY
    with deterministic():
        results = [judge_loss_case(candidate, case) for case in spread(candidate, 7)]
    statuses = {result.id: result.status for result in results}
    assert set(statuses.values()) <= {Status.MATCH, Status.PASS, Status.DECLARED}, statuses


@pytest.mark.parametrize("loss", WRONG, ids=lambda loss: loss.__name__)
def test_its_mistakes_show_and_are_placed(loss):
    candidate = FromLogits("narrow", loss)
    with deterministic():
        runs = [run_loss_case(candidate, case) for case in spread(candidate, 7)]
        observed = next(
            stage
            for stage in ("aggregate", "gradient")
            if any(run.result.first_stage == stage for run in runs)
        )
        departure = locate(
            candidate.kind,
            candidate.stages,
            [run.observation for run in runs if run.observation],
            observed,
            lambda case: judge_loss_case(candidate, case),
            candidate.base_settings,
        )
    assert any(run.result.status in FAILING for run in runs)
    assert departure.stage in WRONG[loss], (departure.stage, departure.explanations)


def test_rows_keep_the_rules_wherever_they_are_moved():
    for narrow in CORRECT:
        reach = FromLogits("narrow", narrow.loss).reach
        assert reach is not None
        moved = [row for row in map(reach.row, covering_rows()) if row is not None]
        assert moved
        assert all(table().allows(row) for row in moved)


def test_a_case_at_a_value_that_no_factor_has_is_made_again_from_its_name():
    def unasked(student_logits, teacher_logits, responses, response_mask):
        settings = {"alpha": 0.9, "distillation_topk": None, "is_clip": None}
        config = SDPOConfig(**{**_USUAL, **settings})
        return reference_loss(
            student_logits, teacher_logits, responses, response_mask, config=config
        )

    candidate = FromLogits("unusual", unasked)
    assert candidate.reach is not None
    assert candidate.reach.fixed == {"alpha": 0.9}
    case = spread(candidate, 30)[0]
    assert case.config.alpha == 0.9
    assert "@alpha=0.9" in case.id
    again = make_again(case.id)
    assert torch.equal(again.student_logits, case.student_logits)
    assert again.config == case.config


_USUAL = {
    "full_logit_distillation": True,
    "distillation_add_tail": True,
    "loss_agg_mode": "token-mean",
    "temperature": 1.0,
}


def test_a_loss_that_takes_nothing_has_no_reach():
    def refuses(student_logits, teacher_logits, responses, response_mask):
        raise NotImplementedError("later")

    assert FromLogits("refuses", refuses).reach is None


def test_a_crash_is_no_lack():
    def crashes(student_logits, teacher_logits, responses, response_mask, *, config):
        if config.temperature != 1:
            raise ValueError("no temperature yet")
        return reference_loss(
            student_logits, teacher_logits, responses, response_mask, config=config
        )

    candidate = FromLogits("crashes", crashes)
    assert candidate.reach is not None
    assert "temperature" not in candidate.reach.lacks
    warm = next(case for case in spread(candidate, 1) if case.config.temperature != 1)
    with pytest.raises(CandidateError, match="no temperature yet"):
        candidate.trace(warm)
