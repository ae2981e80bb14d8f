"""Losses in the shapes that people write are judged by what they compute."""

import pytest

from sdpo.parity.audit.load_candidate import load_candidate
from sdpo.parity.audit.run_loss_cases import judge_loss_case
from sdpo.parity.candidates.loss_functions import LossFunction
from sdpo.parity.candidates.other_shapes import matched, meaning_of
from sdpo.parity.cases.checked_call import CandidateError
from sdpo.parity.compare.statuses import Status
from sdpo.parity.generated_runs.run_generated import cases_within
from sdpo.settings.determinism import deterministic
from tests.helpers import strange_losses

FILE = strange_losses.__file__


def loaded(name):
    candidate = load_candidate(f"{FILE}:{name}")
    assert isinstance(candidate, LossFunction)
    return candidate


def lacks(name):
    reach = loaded(name).reach
    assert reach is not None
    return reach.lacks


@pytest.mark.parametrize("name", strange_losses.CORRECT)
def test_a_correct_loss_of_any_shape_passes_on_many_cases(name):
    candidate = loaded(name)
    note = strange_losses.CORRECT[name]
    assert any(note in said for said in candidate.notes)
    assert candidate.reach is not None, candidate.assumed
    cases = cases_within(candidate.reach, 0)
    assert len(cases) > 80
    with deterministic():
        statuses = [judge_loss_case(candidate, case).status for case in list(cases)[::11]]
    # no hidden state has an infinite logit, and autocast rounds its product
    compared = [status for status in statuses if status != Status.NOT_COVERED]
    assert len(compared) >= 6
    assert set(compared) <= {Status.MATCH, Status.PASS, Status.DECLARED}


@pytest.mark.parametrize(
    ("name", "lacking"),
    [("without_mask", "tokens that do not count"), ("in_a_mapping", "temperature")],
)
def test_what_a_shape_cannot_say_is_lacking(name, lacking):
    assert lacking in lacks(name)
    assert lacking not in lacks("renamed")


def test_settings_reach_an_own_object_and_an_init():
    for name in ("with_settings", "Module", "Plain", "renamed"):
        assert "temperature" not in lacks(name), name


def test_what_cannot_be_told_is_refused_with_the_command_that_helps():
    with pytest.raises(CandidateError, match=r"what to give gizmo of .*`sdpo init .*:unknown`"):
        load_candidate(f"{FILE}:unknown")
    assert matched(strange_losses.unknown).unknown == ("gizmo",)


@pytest.mark.parametrize(
    ("name", "meaning"),
    [("tau", "temperature"), ("beta", "alpha"), ("kl_top_k", "distillation_topk"), ("x", "")],
)
def test_names_have_one_meaning(name, meaning):
    assert meaning_of(name) == meaning
