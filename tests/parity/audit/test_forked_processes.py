"""Work in forked processes gives what it would give here, failures included."""

import os
import tempfile
from math import inf, nan

import pytest

from sdpo.fixtures import packaged_family
from sdpo.parity.audit.forked_processes import (
    FEWEST,
    ForkedResults,
    FreshProcessCheck,
    worth_forking,
)
from sdpo.parity.candidates.implementations import Own
from sdpo.parity.cases.checked_call import CandidateError
from sdpo.parity.cases.loss_case import loss_cases
from sdpo.parity.compare.comparison import Comparison
from sdpo.parity.compare.statuses import Status
from sdpo.parity.compare.verdict import CaseResult

RESULTS = [
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
    assert repr(ForkedResults(lambda: RESULTS).results()) == repr(RESULTS)


def test_a_failure_of_the_candidate_is_raised_here():
    def fails() -> list[CaseResult]:
        raise CandidateError("accumulate", "needs the package 'nothing'")

    with pytest.raises(CandidateError, match="needs the package 'nothing'") as caught:
        ForkedResults(fails).results()
    assert caught.value.stage == "accumulate"


def test_a_process_that_ends_is_not_taken_for_an_empty_result():
    with pytest.raises(RuntimeError, match="ended with exit code 7"):
        ForkedResults(lambda: os._exit(7)).results()


def test_few_cases_and_one_core_stay_here(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert worth_forking(FEWEST)
    assert not worth_forking(FEWEST - 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert not worth_forking(FEWEST)


class Ends(Own):
    """Ends every process but the one that made it."""

    def __init__(self):
        self.home = os.getpid()

    def trace(self, case):
        if os.getpid() != self.home:
            os._exit(3)
        return super().trace(case)


class Counts(Own):
    """Gives other numbers at each call."""

    calls = 0

    def trace(self, case):
        self.calls += 1
        trace = super().trace(case)
        return {**trace, "aggregate": trace["aggregate"] + self.calls}


@pytest.mark.parametrize(
    ("kind", "doubt"), [(Own, ""), (Ends, "ends differently"), (Counts, "keeps state")]
)
def test_a_candidate_that_keeps_state_is_doubted(kind, doubt, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    candidate, case = kind(), loss_cases(packaged_family("loss"))[0]
    check = FreshProcessCheck(candidate, case)
    assert not list(tmp_path.iterdir()), "what has a name is left if the process is ended"
    candidate.trace(case)
    words = " ".join(check.doubt())
    assert doubt in words
    assert bool(words) == bool(doubt)
