"""Faults between the recorded cases: recorded ones do not show them, generated ones do."""

from functools import partial

import pytest

from sdpo.fixtures import packaged_family
from sdpo.parity.audit.generated_cases import run_generated
from sdpo.parity.candidates.loss_functions import FromLogits
from sdpo.parity.cases.loss_case import loss_cases
from sdpo.parity.compare.first_in_time import first_observed
from sdpo.parity.compare.statuses import FAILING, Status
from sdpo.parity.explain.first_departure import locate
from tests.helpers.planted_losses import PLANTED, RIGHT


def ignore(*_):
    return None


def generated(loss, seed=0):
    candidate = FromLogits("planted", loss)
    return candidate, run_generated(candidate, seed, ignore)


def failing(found):
    return [result for result in found.results if result.status in FAILING]


@pytest.mark.parametrize("name", PLANTED)
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
    assert where.stage in (*PLANTED[name].stages, "gradient"[: 8 * (observed == "gradient")])


@pytest.mark.parametrize("name", PLANTED)
def test_no_recorded_case_shows_it(name):
    candidate = FromLogits("planted", PLANTED[name].loss)
    cases = loss_cases(packaged_family("loss"))
    assert [case.id for case in cases if judge_loss_case(candidate, case).status in FAILING] == []


@pytest.mark.parametrize("name", RIGHT)
def test_right_losses_hold_on_all_generated_cases(name):
    _, found = generated(RIGHT[name])
    assert (failing(found), found.doubts) == ([], [])
