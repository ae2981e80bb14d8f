"""Work in forked processes gives what it would give here, failures included."""

import os
import tempfile
from math import inf, nan

import pytest

from sdpo.fixtures import packaged_family
from sdpo.parity.audit.forked_processes import (
    FEWEST,
    ForkedGenerated,
    ForkedResults,
    FreshProcessCheck,
    try_out,
    worth_forking,
)
from sdpo.parity.audit.run_loss_cases import run_loss_case
from sdpo.parity.candidates.implementations import Own, reference_loss
from sdpo.parity.candidates.loss_functions import FromLogits
from sdpo.parity.cases.checked_call import CandidateError
from sdpo.parity.cases.loss_case import loss_cases
from sdpo.parity.compare.comparison import Comparison
from sdpo.parity.compare.statuses import Status
from sdpo.parity.compare.verdict import CaseResult
from sdpo.parity.generated.make_case import covering_cases
from sdpo.parity.generated_runs.run_generated import GeneratedRun
from sdpo.settings.determinism import deterministic
from tests.helpers import narrow_losses

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


def generated_run(loss):
    """Every twelfth generated case, of several dtypes and results."""
    found = GeneratedRun(notes=["a note"])
    with deterministic():
        for case in covering_cases(0)[::12]:
            run = run_loss_case(FromLogits("some", loss), case)
            found.results.append(run.result)
            found.observations += [run.observation] if run.observation else []
    return found


def doubled(student_logits, teacher_logits, responses, response_mask, **given):
    return 2 * reference_loss(student_logits, teacher_logits, responses, response_mask, **given)


def test_generated_cases_are_what_they_would_be_here():
    there = ForkedGenerated(lambda: generated_run(doubled), covering_cases(0)).run()
    here = generated_run(doubled)
    assert repr(there.results) == repr(here.results)
    assert there.notes == here.notes
    assert len(there.observations) == len(here.observations) > 5
    for left, right in zip(there.observations, here.observations, strict=True):
        assert left.evaluated.case.id == right.evaluated.case.id
        assert (left.diverges, left.complaint, left.given) == (
            right.diverges,
            right.complaint,
            right.given,
        )
        assert left.precision == right.precision
        assert left.values.keys() == right.values.keys()
        for name, value in left.values.items():
            assert value.shape == right.values[name].shape
            assert value.tobytes() == right.values[name].tobytes()


def test_a_candidate_that_ends_the_process_of_generated_cases_is_an_error():
    with pytest.raises(CandidateError, match="ended its process with exit code 7"):
        ForkedGenerated(lambda: os._exit(7), covering_cases(0)).run()


def test_what_a_loss_takes_is_found_out_without_calling_it_here():
    calls = []

    def loss(student_logits, teacher_logits, responses, response_mask):
        calls.append(1)
        return narrow_losses.jensen_shannon(
            student_logits, teacher_logits, responses, response_mask
        )

    candidate, other = FromLogits("there", loss), FromLogits("here", loss)
    try_out(candidate)
    assert candidate.reach is not None
    assert calls == []
    assert candidate.reach == other.reach
    assert candidate.assumed == other.assumed
    assert candidate.never_none == other.never_none
