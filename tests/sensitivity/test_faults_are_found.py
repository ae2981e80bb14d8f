"""Each known fault of the loss, as a user's candidate: divergent, and first at its stage."""

import pytest
import torch

from sdpo.parity.audit.run_loss_cases import judge_loss_case
from sdpo.parity.audit.self_test import FaultyTrace, MutantRow, failures, self_test
from sdpo.parity.candidates.log_prob_functions import FromLogProbs
from sdpo.parity.candidates.loss_functions import FromLogits
from sdpo.parity.cases.loss_case import loss_cases
from sdpo.parity.cases.stages import first_in_order
from sdpo.parity.explain.first_departure import WITHOUT_LOG_PROBS, rung_outcome
from sdpo.parity.explain.ladder import climb
from sdpo.parity.faults.catalogue import LOSS_FAULTS
from sdpo.parity.faults.evaluate_fault import loss_from_log_probs, loss_from_logits
from sdpo.settings.determinism import deterministic
from tests.helpers.fault_harness import run_of, telling_cases
from tests.helpers.spread import one_in

ACCEPTED = ("DIVERGENT", "ERROR")
SAME_NUMBERS = {
    "M61": "as M05b: an entry that is not there is not in the sum",
    "M05b": "as M61",
    "M43": "as M49 and M50: nothing is left for the tail",
}
LADDER_EXCEPTIONS = {
    "M43": "gives the numbers of M49, a fault of the tail",
    "M61": "a tail left out of the sum departs exactly where a wrong tail does",
    "M118": "float32 cannot tell a limit from another that is as small",
    "M119": "as M118",
    "M135": "a fault of float64 alone, and this ladder is of float32",
    "M100": "float32 cannot tell on which side of its limit a tail lies",
}
EVERY = 4
AFTER_LOG_PROBS = [fault for fault in LOSS_FAULTS if fault.after_log_probs]


def name(fault):
    return fault.id


@pytest.mark.parametrize("fault", one_in(EVERY, LOSS_FAULTS), ids=name)
def test_as_a_full_trace(fault):
    """Some of them; the slow self-test runs all, and the next test each as a loss."""
    with deterministic():
        candidate, cases = FaultyTrace(fault), loss_cases(telling_cases(fault))
        results = [judge_loss_case(candidate, case) for case in cases]
    assert {result.status for result in results} & set(ACCEPTED)
    assert first_in_order({r.first_stage for r in results if r.first_stage}) == fault.stage


@pytest.mark.parametrize("fault", LOSS_FAULTS, ids=name)
def test_as_a_loss_from_logits(fault):
    run = run_of(FromLogits(fault.id, loss_from_logits(fault.parts)), telling_cases(fault))
    assert run.verdict == "DIVERGENT"
    assert fault.label in run.explained_by
    assert run.first_stage_inferred
    if fault.id not in SAME_NUMBERS:
        assert run.first_stage == fault.stage


@pytest.mark.parametrize("fault", AFTER_LOG_PROBS[::EVERY], ids=name)
def test_as_a_loss_from_log_probs(fault):
    """Some of them; the slow self-test runs all."""
    run = run_of(FromLogProbs(fault.id, loss_from_log_probs(fault.parts)), telling_cases(fault))
    assert run.verdict == "DIVERGENT"
    assert fault.label in run.explained_by
    assert run.first_stage == fault.stage


def by_ladder(candidate):
    with deterministic():
        return climb(lambda case: rung_outcome(judge_loss_case(candidate, case)), torch.float32)[0]


@pytest.mark.slow
def test_the_ladder_alone_names_the_stage_of_almost_every_fault():
    wrong = {
        fault.id
        for fault in LOSS_FAULTS
        if by_ladder(FromLogits(fault.id, loss_from_logits(fault.parts))) != fault.stage
    }
    assert wrong == LADDER_EXCEPTIONS.keys()


@pytest.mark.slow
def test_the_ladder_alone_from_log_probs():
    wrong = set()
    for fault in AFTER_LOG_PROBS:
        stage = by_ladder(FromLogProbs(fault.id, loss_from_log_probs(fault.parts)))
        if WITHOUT_LOG_PROBS.get(stage or "", stage) != fault.stage:
            wrong.add(fault.id)
    assert wrong == LADDER_EXCEPTIONS.keys() - {"M43", "M135"}


@pytest.mark.slow
def test_the_whole_self_test():
    rows = list(self_test([fault.id for fault in LOSS_FAULTS]))
    assert failures(rows) == []
    assert len(rows) == len(LOSS_FAULTS)


def test_a_survivor_fails_the_self_test():
    row: MutantRow = {
        "id": "M00",
        "name": "nothing",
        "group": "",
        "stage": "tail",
        "source": "",
        "killed": False,
        "at_its_stage": False,
        "verdicts": {"logits": "PASS"},
        "stages": {"logits": None},
        "explained_by": {"logits": []},
        "bfloat16": "found",
    }
    assert failures([row]) == ["M00 nothing survives"]
    row["killed"], row["stages"] = True, {"logits": "gradient"}
    assert failures([row]) == ["M00 nothing found at gradient, not tail"]
