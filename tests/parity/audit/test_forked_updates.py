"""Work in a process beside the audit gives what it would give here, failures included."""

import os

import pytest

from sdpo.parity.audit.forked_updates import FEWEST, Beside, pays
from sdpo.parity.cases.checked_call import CandidateError
from sdpo.parity.compare.comparison import Comparison
from sdpo.parity.compare.verdict import CaseResult

FOUND = [
    CaseResult("A", "update", ("tag",), note="not covered: nothing to do"),
    CaseResult(
        "B",
        "update",
        comparisons=[
            Comparison("aggregate", "MATCH", "B", 3, smallest_detectable=1e-7),
            Comparison("gradient", "DIVERGENT", "B", 2, 0.1, float("inf"), float("nan"), note="n"),
            Comparison("optimizer", "PASS", "B", 1, 1 / 3, worst={"actual": float("nan")}),
        ],
    ),
]


def test_results_are_those_of_the_work_to_the_bit():
    assert repr(Beside(lambda: FOUND).results()) == repr(FOUND)


def test_a_failure_of_the_candidate_is_raised_here():
    def fails() -> list[CaseResult]:
        raise CandidateError("accumulate", "needs the package 'nothing'")

    with pytest.raises(CandidateError, match="needs the package 'nothing'") as caught:
        Beside(fails).results()
    assert caught.value.stage == "accumulate"


def test_a_process_that_ends_is_not_taken_for_an_empty_result():
    with pytest.raises(RuntimeError, match="ended with exit code 7"):
        Beside(lambda: os._exit(7)).results()


def test_few_cases_and_one_core_stay_here(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert pays(FEWEST)
    assert not pays(FEWEST - 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert not pays(FEWEST)
