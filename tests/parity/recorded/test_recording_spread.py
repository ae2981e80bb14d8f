"""Budgets of recorded updates: a recording that is close to the truth by luck fails nobody.

Budget kind: that of the update family; see `sdpo.parity.recorded.recording_spread`.
"""

from functools import cache

import pytest
import torch

from sdpo.fixtures import packaged_family
from sdpo.parity.candidates.implementations import Transcription
from sdpo.parity.cases.stage_trace import Moment, Place, StageTrace
from sdpo.parity.cases.tensor_distances import scale_of
from sdpo.parity.compare.comparison import Comparison
from sdpo.parity.compare.statuses import Status
from sdpo.parity.compare.verdict import CaseResult
from sdpo.parity.explain.first_departure import Departure
from sdpo.parity.recorded import updates
from sdpo.parity.recorded.measured_budgets import compare_measured
from sdpo.parity.recorded.recording_spread import a_little_over, round_anew, widest
from sdpo.parity.report.document import Evidence, Policy, assemble
from sdpo.parity.report.rejudge import evidence_of

pytest.importorskip("transformers", reason="provides the models of the recorded updates")
FAMILY = packaged_family("update")
GOLDEN = FAMILY.case("P-U014")
RECORDED = GOLDEN.tensors()


run_reference = updates.run_reference


@cache
def known(dtype, rounded):
    return run_reference(FAMILY, GOLDEN, RECORDED, dtype, rounded=rounded)


def run_once(family, golden, recorded, dtype, *, rounded=None):
    return StageTrace(known(dtype, rounded))


@pytest.fixture(scope="module")
def truth():
    return known(torch.float64, None)


def candidate(change=lambda trace: trace):
    """The transcription, rounded otherwise than the runs that budgets are taken from."""

    class Rounded(Transcription):
        def update_trace(self, family, golden, tensors):
            run = updates.run_reference(family, golden, tensors, torch.float32, rounded=1000)
            return change(run)

    return Rounded()


def lucky(monkeypatch):
    """Let the recording alone be a fifth as far from the truth as it is."""
    real = updates.float32_errors

    def near(run, truth):
        found = real(run, truth)
        return {k: v / 5 for k, v in found.items()} if run[LOSS] is FIRST else found

    monkeypatch.setattr(updates, "float32_errors", near)
    monkeypatch.setattr(GOLDEN.__class__, "tensors", lambda self: RECORDED)


FIRST, LOSS = RECORDED["u0.mb0.loss"], Place(0, 0, 0, "aggregate", "aggregate")


@pytest.fixture(autouse=True)
def references_once(monkeypatch):
    """Runs of the reference do not depend on the candidate: each is made once."""
    monkeypatch.setattr(updates, "run_reference", run_once)


def test_luck_of_the_recording_is_no_verdict(monkeypatch):
    lucky(monkeypatch)
    result = updates.run_case(candidate(), FAMILY, GOLDEN)
    assert result.status == Status.PASS
    assert "more float32 runs" in result.note
    assert read_back(result).note == result.note


def read_back(result: CaseResult) -> CaseResult:
    """What a report holds of a case."""
    evidence = Evidence("trl", "trainer", (), [result])
    report = assemble(evidence, Policy(), lambda verdict, observed: Departure(observed))
    return evidence_of(report).results[0]


def test_without_more_runs_luck_would_be_a_verdict(monkeypatch):
    lucky(monkeypatch)
    monkeypatch.setattr(updates, "a_little_over", lambda found: False)
    assert updates.run_case(candidate(), FAMILY, GOLDEN).status == Status.DIVERGENT


def changed(size):
    def change(trace):
        place = next(p for p in trace if p.name == "importance" and any(p.moment))
        return StageTrace(trace | {place: trace[place] * (1 + size)})

    return change


@pytest.mark.parametrize("size", [1e-4, 1e-3, 1e-1])
def test_a_fault_of_one_part_in_ten_thousand_is_still_seen(size):
    result = updates.run_case(candidate(changed(size)), FAMILY, GOLDEN)
    assert result.status == Status.DIVERGENT
    assert result.first_stage == "importance"
    assert not result.note


def test_only_what_is_a_little_over_is_measured_again():
    def over(*used):
        return [Comparison("importance", Status.DIVERGENT, budget_used=value) for value in used]

    assert a_little_over(over(1.5, 3.0))
    assert a_little_over(over(1.5, 10.0))
    assert not a_little_over(over(1.5, 10.1))
    assert not a_little_over(over(0.0)), "of another kind than a distance"
    assert not a_little_over([Comparison("importance", Status.PASS, budget_used=0.9)])


def test_weights_move_by_one_unit_in_the_last_place_at_most():
    module = torch.nn.Linear(40, 50)
    before = module.weight.detach().clone()
    round_anew([None, module], seed=0)
    moved = (module.weight - before).abs()
    units = torch.nextafter(before.abs(), torch.tensor(torch.inf)) - before.abs()
    assert (moved <= units).all()
    assert 0.5 < float((moved > 0).float().mean()) < 0.8


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([0.5, -2.0], 2.0),
        ([torch.nan, -2.0, 1.0], 2.0),
        ([torch.inf, -2.0], 2.0),
        ([torch.nan], 0.0),
        ([], 0.0),
    ],
)
def test_scale_is_the_largest_finite_magnitude(values, scale):
    assert scale_of(torch.tensor(values)) == scale


def test_a_run_with_other_entries_does_not_widen():
    recorded, other, same = (run_with(*pair) for pair in ((1.0, 1), (9.0, 2), (3.0, 1)))
    found = widest([other, same], recorded, lambda run: {"x": run[LOSS].item()})
    assert found == {"x": 3.0}


def run_with(loss, index):
    trace = StageTrace()
    trace.put(Moment(), {"aggregate": torch.tensor(loss), "support.indices": torch.tensor([index])})
    return trace


@pytest.mark.parametrize(
    ("spread", "times", "status"),
    [
        (0.1, 1.0, Status.MATCH),
        (0.1, 0.7, Status.NOT_COVERED),  # within 0.4, which is no budget
        (0.1, 3.0, Status.DIVERGENT),
        (0.01, 0.5, Status.DIVERGENT),
        (0.01, 0.99, Status.PASS),
    ],
)
def test_within_a_budget_that_shows_no_factor_of_two_nothing_is_said(spread, times, status):
    value = torch.linspace(-1, 1, 9)
    found = compare_measured("accumulate", "", value, value, times * value, error=spread)
    assert found.status == status
    assert ("no budget: rounding alone" in found.note) == (status == Status.NOT_COVERED)
