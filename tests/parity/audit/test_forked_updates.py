"""Work in a process beside the audit gives what it would give here, failures included."""

import os
from math import inf, nan

import pytest

from sdpo.parity.audit.forked_updates import FEWEST, ForkedWork, worth_forking
from sdpo.parity.cases.checked_call import CandidateError
from sdpo.parity.compare.comparison import Comparison
from sdpo.parity.compare.statuses import Status
from sdpo.parity.compare.verdict import CaseResult

FOUND = [
    CaseResult("A", "update", ("tag",), note="not covered: nothing to do"),
    CaseResult(
        "B",
        "update",
        comparisons=[
            Comparison("aggregate", Status.MATCH, "B", 3, smallest_detectable=1e-7),
            Comparison("gradient", Status.DIVERGENT, "B", 2, 0.1, inf, nan, note="n"),
            Comparison("optimizer", Status.PASS, "B", 1, 1 / 3, worst={"actual": nan}),
        ],
    ),
]


def test_results_are_those_of_the_work_to_the_bit():
    assert repr(ForkedWork(lambda: FOUND).results()) == repr(FOUND)


def test_a_failure_of_the_candidate_is_raised_here():
    def fails() -> list[CaseResult]:
        raise CandidateError("accumulate", "needs the package 'nothing'")

    with pytest.raises(CandidateError, match="needs the package 'nothing'") as caught:
        ForkedWork(fails).results()
    assert caught.value.stage == "accumulate"


def test_a_process_that_ends_is_not_taken_for_an_empty_result():
    with pytest.raises(RuntimeError, match="ended with exit code 7"):
        ForkedWork(lambda: os._exit(7)).results()


def test_few_cases_and_one_core_stay_here(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert worth_forking(FEWEST)
    assert not worth_forking(FEWEST - 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert not worth_forking(FEWEST)
