"""Faults between the recorded cases: recorded ones do not show them, generated ones do."""

from functools import partial

import pytest
import torch

from sdpo.fixtures import packaged_family
from sdpo.parity.audit.run_loss_cases import judge_loss_case, run_loss_case
from sdpo.parity.candidates.implementations import Own, reference_loss
from sdpo.parity.candidates.loss_functions import FromLogits
from sdpo.parity.cases.loss_case import loss_cases
from sdpo.parity.compare.first_in_time import first_observed
from sdpo.parity.compare.statuses import FAILING, Status
from sdpo.parity.explain.first_departure import locate
from sdpo.parity.generated_runs.run_generated import explore, fixed_factors, run_generated
from tests.helpers.planted_losses import PLANTED, RIGHT
from tests.helpers.spread import one_in


def ignore(*_):
    return None


def generated(loss, seed=0):
    candidate = FromLogits("planted", loss)
    return candidate, run_generated(partial(run_loss_case, candidate), seed, ignore)


def failing(found):
    return [result for result in found.results if result.status in FAILING]


@pytest.mark.parametrize("name", one_in(4, PLANTED))
def test_a_fault_between_the_recorded_cases_is_found_and_placed(name):
    candidate, found = generated(PLANTED[name].loss)
    assert {result.status for result in failing(found)} == {Status.DIVERGENT}
    observed = first_observed(found.results)
    where = locate(
        candidate.kind,
        candidate.stages,
        found.observations,
        observed,
        partial(judge_loss_case, candidate),
    )
    assert where.stage in PLANTED[name].stages


@pytest.mark.parametrize("name", one_in(4, PLANTED))
def test_no_recorded_case_shows_it(name):
    candidate = FromLogits("planted", PLANTED[name].loss)
    cases = loss_cases(packaged_family("loss"))
    results = [judge_loss_case(candidate, case) for case in cases]
    assert [result.id for result in results if result.status in FAILING] == []


@pytest.mark.parametrize("name", RIGHT)
def test_right_losses_hold_on_all_generated_cases(name):
    _, found = generated(RIGHT[name])
    assert (failing(found), found.doubts) == ([], [])


def test_the_same_seed_gives_the_same_cases_and_another_seed_others():
    def ids(seed):
        return [result.id for result in generated(reference_loss, seed)[1].results]

    assert ids(0) == ids(0)
    assert not set(ids(0)) & set(ids(1))


def test_what_is_refused_in_a_form_only_is_not_covered():
    def loss(student_logits, teacher_logits, responses, response_mask, **others):
        if student_logits.dtype != torch.float32:
            raise TypeError("float32 only")
        if others["config"].distillation_topk == 1:
            raise ValueError("K must be above 1")
        return reference_loss(student_logits, teacher_logits, responses, response_mask, **others)

    _, found = generated(loss)
    notes = {(result.status, result.note.partition(";")[0]) for result in found.results}
    refused = "refuses this form: raised TypeError: float32 only"
    assert (Status.NOT_COVERED, refused) in notes
    errors = [result for result in failing(found) if result.status == Status.ERROR]
    assert errors
    assert all({"support 1", "vocabulary 2"} & set(result.tags) for result in errors)


def test_a_note_claims_no_way_of_calling_that_a_candidate_does_not_have():
    def other_names(mine, theirs, tokens, mask, *, config):
        return mine.sum()

    def in_another_order(teacher_logits, student_logits, responses, response_mask, *, config):
        return student_logits.sum()

    assert fixed_factors(FromLogits("usual", reference_loss)) == {}
    assert fixed_factors(FromLogits("renamed", other_names)) == {"arguments": "by position"}
    assert fixed_factors(FromLogits("exchanged", in_another_order)) == {"arguments": "by name"}
    assert fixed_factors(Own()) == {
        "layout": "contiguous",
        "arguments": "by name",
        "incoming": 1.0,
        "autocast": "off",
        "teacher": "requires grad",
        "order": "alone",
    }


def test_exploring_finds_a_fault_of_three_conditions_and_ends():
    def loss(student_logits, teacher_logits, responses, response_mask, **others):
        rows, tokens = responses.shape
        if rows == 1 and tokens == 9 and others["config"].temperature == 2.0:
            teacher_logits = teacher_logits * 1.01
        return reference_loss(student_logits, teacher_logits, responses, response_mask, **others)

    candidate = FromLogits("planted", loss)
    found = explore(partial(run_loss_case, candidate), 0, 60.0, ignore)
    assert failing(found)
    assert all(
        {"rows 1", "tokens 9", "temperature 2.0"} <= set(result.tags) for result in failing(found)
    )
    assert "further cases at random (seed 0)" in found.notes[0]
