"""A candidate on single cases of the loss: failures, and disagreement with itself."""

import itertools

import pytest

from sdpo.fixtures import packaged_family
from sdpo.parity.audit.run_loss_cases import judge_loss_case, run_loss_case
from sdpo.parity.candidates.implementations import Own
from sdpo.parity.cases.checked_call import CandidateError, NotCoveredError
from sdpo.parity.cases.loss_case import loss_cases
from sdpo.parity.compare.statuses import Status

CASE = loss_cases(packaged_family("loss"))[0]


class Raises(Own):
    def __init__(self, error):
        self.error = error

    def trace(self, case):
        raise self.error


class Alternates(Own):
    """Gives a larger loss in every second call."""

    def __init__(self):
        self.calls = itertools.count()

    def trace(self, case):
        trace = super().trace(case)
        return {**trace, "aggregate": trace["aggregate"] + next(self.calls) % 2}


def test_our_implementation_holds_without_doubt():
    run = run_loss_case(Own(), CASE)
    assert run.result.status in (Status.MATCH, Status.PASS)
    assert (run.doubts, run.scatter) == ([], {})
    assert run.observation is not None
    assert not run.observation.diverges


def test_a_value_that_differs_between_two_runs_is_a_doubt_and_not_compared():
    run = run_loss_case(Alternates(), CASE)
    assert run.doubts == [f"two runs of case {CASE.id} differ at aggregate"]
    assert run.scatter.keys() == {"aggregate"}
    assert "aggregate" not in {comparison.stage for comparison in run.result.comparisons}


@pytest.mark.parametrize(
    ("error", "status", "note"),
    [
        (NotCoveredError("no weights"), Status.NOT_COVERED, "no weights"),
        (CandidateError("tail", "boom"), Status.ERROR, "boom; the reference computes this case"),
    ],
)
def test_a_failure_is_an_error_and_what_is_not_covered_is_none(error, status, note):
    result = judge_loss_case(Raises(error), CASE)
    assert result.status == status
    assert result.row()["note"] == note
