"""The example of a Hugging Face trainer's adapter: what is found is the trainer's own doing."""

from pathlib import Path
from typing import Any

import audit_my_hf_trainer as example
import pytest

import sdpo.trainer.sdpo_trainer
from sdpo.parity.audit.launch import Outputs, audit_all
from sdpo.parity.audit.request import Request
from sdpo.parity.compare.statuses import Status
from sdpo.parity.report.run_report import read_report
from sdpo.parity.trainers.judge.run_scenarios import run_trainer_family
from sdpo.parity.trainers.probes.catalogue import PROBES
from sdpo.parity.trainers.probes.run_probes import run_probe
from sdpo.parity.trainers.scenarios.catalogue import SCENARIOS

pytestmark = pytest.mark.usefixtures("packages_are_looked_up_once")

FOLDER = Path(__file__).parents[2] / "examples"
BY_ID = {scenario.id: scenario for scenario in SCENARIOS}
OFF_POLICY = {"T05", "T06", "T29"}
CANNOT = {
    "T17": "adapter",
    "T25": "mixed logits",
    "T41": "adapter",
    "T44": "adapter",
    "T45": "policy_terms",
    "T46": "policy_terms",
}


class Honest(example.MyAdapter):
    """The example with a trainer that has no mistake."""

    trainer = sdpo.trainer.sdpo_trainer.SDPOTrainer


def statuses(adapter: Any, names: list[str]) -> tuple[dict[str, str], dict[str, set[str]]]:
    found = run_trainer_family(adapter, lambda *_: None, [BY_ID[name] for name in names])
    for result in found.results:
        assert CANNOT.get(result.id, "") in result.note
    return {result.id: result.status for result in found.results}, found.explained


def test_an_honest_example_passes_what_it_can_show():
    found, explained = statuses(Honest(), ["T05", "T24", "T17", "T25"])
    assert found["T05"] in (Status.MATCH, Status.PASS)
    assert found["T24"] in (Status.MATCH, Status.PASS)
    assert {found["T17"], found["T25"]} == {Status.NOT_COVERED}
    assert not explained


@pytest.mark.parametrize("probe", ["C13", "C28"])
def test_settings_reach_the_trainer_of_the_example(probe):
    (wanted,) = [entry for entry in PROBES if entry.id == probe]
    (comparison,) = run_probe(example.MyAdapter(), wanted, {}).comparisons
    assert comparison.status == Status.MATCH, comparison.note


def test_the_mistake_of_the_example_is_found_and_named():
    found, explained = statuses(example.MyAdapter(), ["T01", "T05"])
    assert (found["T01"] in (Status.MATCH, Status.PASS), found["T05"]) == (True, Status.DIVERGENT)
    assert explained == {"M109 teacher averaged per optimizer step": {"T05"}}


HONEST = """
import sys
sys.path.insert(0, {folder!r})
import sdpo.trainer.sdpo_trainer
from audit_my_hf_trainer import MyAdapter

class Honest(MyAdapter):
    trainer = sdpo.trainer.sdpo_trainer.SDPOTrainer
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("honest", [True, False])
def test_the_whole_audit_of_the_example(honest, tmp_path):
    file = tmp_path / "honest.py"
    file.write_text(HONEST.format(folder=str(FOLDER)), encoding="utf-8")
    name = f"{file}:Honest" if honest else f"{FOLDER / 'audit_my_hf_trainer.py'}:MyAdapter"
    audit_all([Request(name)], Outputs(tmp_path / "out", quiet=True))
    (path,) = (tmp_path / "out").glob("*/report.json")
    (run,) = read_report(path).runs
    assert run.verdict == (Status.DECLARED if honest else Status.DIVERGENT), run.reasons
    by_status = {
        status: {case.id for case in run.cases if case.status == status}
        for status in (Status.DIVERGENT, Status.ERROR, Status.NOT_COVERED)
    }
    assert by_status[Status.ERROR] == set()
    assert by_status[Status.DIVERGENT] == (set() if honest else OFF_POLICY)
    assert by_status[Status.NOT_COVERED] == CANNOT.keys() | {"C32"}
