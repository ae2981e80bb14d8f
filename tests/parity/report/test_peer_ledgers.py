"""The packaged ledgers of TRL and sdpo-rl: what they name exists, and each entry is needed."""

import importlib.util
from dataclasses import replace
from datetime import date

import pytest

from sdpo.parity.audit.launch import Outputs, audit_all
from sdpo.parity.audit.load_candidate import TRAINERS, find, packaged_bases
from sdpo.parity.audit.request import Request
from sdpo.parity.compare.comparison import Comparison
from sdpo.parity.compare.statuses import Status
from sdpo.parity.compare.verdict import CaseResult
from sdpo.parity.faults.catalogue import BY_ID
from sdpo.parity.report.declared_deviations import apply_declarations, load_for
from sdpo.parity.report.rejudge import policy_of, regate
from sdpo.parity.report.report_context import Deviation
from sdpo.parity.report.run_report import read_report
from sdpo.parity.trainers.judge.logged_metrics import QUESTIONS
from sdpo.parity.trainers.probes.catalogue import PROBES
from sdpo.parity.trainers.scenarios.catalogue import SCENARIOS

TAGS = {scenario.id: scenario.tags for scenario in SCENARIOS}
TAGS |= {probe.id: ("probe",) for probe in PROBES}
TAGS |= {check: ("probe", "logged") for check in QUESTIONS}
TODAY = date(2027, 5, 31)
PEERS = ("trl", "sdpo-rl")
ENTRIES = [pytest.param(peer, entry, id=entry.id) for peer in PEERS for entry in load_for([peer])]


def shown_by(entry: Deviation, *, grown: float = 1.0) -> list[CaseResult]:
    """Divergent results as the entry declares them, in the scenarios that it speaks of."""
    cases = [
        id_
        for id_, tags in TAGS.items()
        if (not entry.cases or id_ in entry.cases) and entry.tag in ("*", *tags)
    ]
    if not entry.sized_by_value:
        assert entry.measured is not None
        cases = cases[: round(entry.measured * grown)]
    size = (entry.measured or 0.0) * grown if entry.sized_by_value else 0.0
    (stage,) = entry.stages
    found = Comparison(stage, Status.DIVERGENT, compared=1, max_abs=size, effect=entry.effect)
    return [CaseResult(id_, "trainer", TAGS[id_], [found]) for id_ in cases]


def gate(peer: str, entries, results) -> tuple[set[str], list[str]]:
    found = apply_declarations(results, peer, entries, today=TODAY)
    return {result.status for result in found.results}, found.complaints


@pytest.mark.parametrize(("peer", "entry"), ENTRIES)
def test_an_entry_names_what_exists(peer, entry):
    assert entry.candidates == (peer,)
    assert entry.id.startswith(peer[0].upper() + "-")
    assert set(entry.cases) <= TAGS.keys()
    assert entry.tag == "*" or any(entry.tag in tags for tags in TAGS.values())
    assert not entry.fault or entry.fault in BY_ID
    assert entry.link.startswith("https://")
    assert entry.expires is not None
    assert len(entry.reason.split()) > 8


@pytest.mark.parametrize(("peer", "entry"), ENTRIES)
def test_an_entry_holds_for_what_was_measured_and_for_nothing_else(peer, entry):
    results = shown_by(entry)
    assert results, "the entry speaks of no scenario"
    assert gate(peer, [entry], results) == ({Status.DECLARED}, [])
    others = [other for other in load_for([peer]) if other.id != entry.id]
    assert Status.DIVERGENT in gate(peer, others, results)[0], "another entry covers it too"
    _, (gone,) = gate(peer, [entry], [as_match(result) for result in results])
    assert "no longer shows" in gone
    if entry.sized_by_value and entry.measured:
        for factor, word in ((1.03, "grew"), (0.97, "shrank")):
            _, (complaint,) = gate(peer, [entry], shown_by(entry, grown=factor))
            assert word in complaint


@pytest.mark.parametrize(("peer", "entry"), ENTRIES[:1] + ENTRIES[-1:])
def test_a_ledger_holds_for_a_subclass_of_the_adapter_and_for_no_other(peer, entry):
    results = shown_by(entry)

    def status(derives_from: tuple[str, ...]) -> set[str]:
        found = apply_declarations(
            results, "mine.py:Mine", [entry], today=TODAY, derives_from=derives_from
        )
        return {result.status for result in found.results}

    kind = find(TRAINERS[peer])
    mine = type("Mine", (kind,), {"name": "mine"})()
    assert packaged_bases(mine) == packaged_bases(kind()) == (peer,)
    assert status(packaged_bases(mine)) == {Status.DECLARED}
    other = find(TRAINERS["sdpo-trainer"])()
    assert status(packaged_bases(other)) == status(()) == {Status.DIVERGENT}


def as_match(result: CaseResult) -> CaseResult:
    (comparison,) = result.comparisons
    return replace(result, comparisons=[replace(comparison, status=Status.MATCH, effect="")])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("peer", PEERS)
def test_the_peers_are_as_their_ledgers_say(peer, tmp_path):
    if peer == "sdpo-rl" and importlib.util.find_spec("sdpo_rl") is None:
        pytest.skip("sdpo-rl is not installed")
    outputs = Outputs(tmp_path, quiet=True)
    code = audit_all([Request(peer, declared=(peer,))], outputs)
    (run,) = read_report(tmp_path / peer / "report.json").runs
    assert (run.verdict, code) == ("DECLARED", 0), run.reasons
    policy = policy_of(run)
    assert regate(run, replace(policy, declared=())).exit_code == 1
    for entry in policy.declared:
        others = tuple(other for other in policy.declared if other is not entry)
        judged = regate(run, replace(policy, declared=others))
        assert judged.verdict == "DIVERGENT", f"{entry.id} declares nothing"
