"""What a recorded value may follow from, and how an update's norms are placed."""

import pytest
import torch

from sdpo.fixtures import packaged_family
from sdpo.parity.candidates.implementations import Own
from sdpo.parity.cases.stage_trace import GRAD_NORM, NO_STAGE, Moment, Place, StageTrace
from sdpo.parity.compare.statuses import Status
from sdpo.parity.recorded import updates
from sdpo.parity.recorded.updates import compare_norms, float32_errors, kind_of, not_recorded
from sdpo.update.actor_update import PLAIN_FORWARD
from sdpo.update.policy_terms import PolicyTerms


@pytest.mark.parametrize(
    ("place", "follows"),
    [
        (Place(0, 0, 0, "log_probs", "log_probs.teacher"), ()),
        (Place(0, 0, 1, "log_probs", "log_probs.teacher"), ("teacher_update",)),
        (Place(0, 0, 1, "log_probs", "log_probs.student"), ()),
        (Place(0, 1, 0, "log_probs", "log_probs.student"), ("optimizer",)),
        (Place(0, 1, 0, "support", "support.indices"), ("optimizer",)),
        (Place(0, 1, 0, "importance", "importance"), ("optimizer", "teacher_update")),
        (Place(0, 1, 0, "optimizer", "w"), ()),
    ],
)
def test_weights_are_recorded_after_the_whole_update_only(place, follows):
    assert not_recorded(place) == follows


def with_norms(*norms):
    trace = StageTrace()
    for step, norm in enumerate(norms):
        trace.put(Moment(0, step, 1), {GRAD_NORM: norm}, NO_STAGE)
    return trace


def test_norms_are_placed_at_the_first_step_that_is_off():
    recorded = with_norms(1.0, 2.0, 4.0)
    found = compare_norms("", 0, (recorded, recorded, with_norms(1.0, 3.0, 5.0)), 0.0)
    assert (found.status, found.place) == (Status.DIVERGENT, (0, 1, 1))
    same = compare_norms("", 0, (recorded, recorded, recorded), 0.0)
    assert (same.status, same.compared) == (Status.MATCH, 3)


def test_another_number_of_steps_is_an_error():
    recorded = with_norms(1.0, 2.0)
    found = compare_norms("", 0, (recorded, recorded, with_norms(1.0)), 0.0)
    assert found.status == Status.ERROR


def test_values_of_all_micro_batches_share_an_error_and_so_do_all_weights():
    assert kind_of(Place(0, 1, 1, "support", "support.student")) == "support.student"
    assert kind_of(Place(0, 1, 1, "optimizer", "w")) == "optimizer"
    single, double = StageTrace(), StageTrace()
    for micro_batch, error in enumerate((0.5, 0.25)):
        place = Place(0, 0, micro_batch, "importance", "importance")
        double[place] = torch.tensor([1.0, 2.0])
        single[place] = double[place] + error
    assert float32_errors(single, double) == {"importance": 0.25}  # 0.5 of the scale 2


FAULTS = {
    "rows are not packed": ("P-U045", updates, "ForwardSettings", lambda *_, **__: PLAIN_FORWARD),
    "no autocast": ("P-U047", updates, "ForwardSettings", lambda *_, **__: PLAIN_FORWARD),
    "no entropy bonus": ("P-U040", PolicyTerms, "added_to", lambda self, loss, config: loss),
    "no KL anchor": ("P-U042", PolicyTerms, "added_to", lambda self, loss, config: loss),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_case_is_recorded_for_cannot_be_left_out(fault, monkeypatch):
    pytest.importorskip("transformers")
    case_id, owner, name, wrong = FAULTS[fault]
    family = packaged_family("update")
    monkeypatch.setattr(owner, name, wrong)
    assert updates.run_case(Own(), family, family.case(case_id)).status == Status.DIVERGENT
