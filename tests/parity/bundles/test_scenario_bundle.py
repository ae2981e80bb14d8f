"""Replay bundles of trainers: a scenario as JSON, read without trust, shrunk and run again."""

import json
import zipfile
from dataclasses import replace

import msgspec
import pytest

from sdpo.parity.audit.launch import BundlesRequest
from sdpo.parity.audit.rejudge_and_replay import ReplayRequest, replay_text
from sdpo.parity.bundles import scenario_bundle
from sdpo.parity.bundles.archive import BundleError, Shrunk
from sdpo.parity.bundles.make_and_replay import make, replay
from sdpo.parity.bundles.scenario_bundle import (
    DOCUMENT,
    ScenarioBundle,
    ScenarioDocument,
    read,
    write,
)
from sdpo.parity.compare.statuses import Status
from sdpo.parity.report.report_context import Seen
from sdpo.parity.trainers.scenarios.catalogue import BY_ID, PLAIN
from sdpo.parity.trainers.scenarios.scenario_json import as_json
from tests.helpers.trainers import faulty_adapter

pytestmark = pytest.mark.usefixtures("packages_are_looked_up_once")

DOCUMENT_OF_PLAIN = ScenarioDocument(
    schema_version=1,
    candidate="trl",
    seen=Seen(Status.DIVERGENT, "aggregate", "n"),
    shrunk=Shrunk([1, 1, 4], [1, 1, 4], 1),
    environment={"torch": "2"},
    command="sdpo audit trl",
    scenario=as_json(PLAIN),
    weights="00",
)
BUNDLE = ScenarioBundle(PLAIN, DOCUMENT_OF_PLAIN)


def rewritten(path, text, name=DOCUMENT):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, text)


def test_a_bundle_is_read_as_it_was_written_and_has_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name, BUNDLE)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    found = read(tmp_path / "a")
    assert found.scenario == PLAIN
    assert found.document == msgspec.json.decode(
        msgspec.json.encode(DOCUMENT_OF_PLAIN), type=ScenarioDocument
    )
    assert scenario_bundle.is_scenario_bundle(tmp_path / "a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "Expected `object`, got `array`"),
        ("{", "not in the format"),
        ("[" * 100_000, "not in the format"),
        ("0" * (scenario_bundle.LARGEST[DOCUMENT] + 1), "larger than 1 MiB"),
        (json.dumps({"schema_version": 1}), "missing required field `candidate`"),
    ],
)
def test_a_damaged_bundle_is_refused(text, message, tmp_path):
    rewritten(tmp_path / "b.zip", text)
    with pytest.raises(BundleError, match=message):
        read(tmp_path / "b.zip")


def test_an_archive_with_other_members_is_no_bundle_of_a_scenario(tmp_path):
    rewritten(tmp_path / "b.zip", "{}", "other.json")
    assert not scenario_bundle.is_scenario_bundle(tmp_path / "b.zip")
    with pytest.raises(BundleError):
        replay(ReplayRequest(str(tmp_path / "b.zip")))


def test_the_smallest_scenario_of_each_stage_is_packed_first():
    asked_more = replace(PLAIN, id="more", generations=(PLAIN.generations[0],) * 2)
    failing = [(asked_more, "aggregate"), (BY_ID["T10"], "optimizer"), (PLAIN, "aggregate")]
    chosen = scenario_bundle.smallest_first(failing)
    assert [scenario.id for scenario in chosen] == ["T01", "T10", "more"]


FAULTY = faulty_adapter.__file__


@pytest.mark.slow
def test_a_failing_scenario_is_packed_small_and_replays_with_the_same_verdict(tmp_path):
    cases = (("T07", "gradient"),)
    name = f"{FAULTY}:HalfGradient"
    (row,) = make(BundlesRequest(name, (), "c", cases, str(tmp_path), 1)).bundles
    assert row.before == [3, 1, 4]
    assert row.after == [1, 1, 2]
    path = str(tmp_path / "T07.zip")
    again = replay(ReplayRequest(path))
    assert (again.verdict, again.first_stage, again.replay) == (
        "DIVERGENT",
        "gradient",
        "same",
    )
    assert again.environment_differs == {}
    assert "groups: 1, rows: 2" in replay_text(again)
    repaired = replay(ReplayRequest(path, f"{FAULTY}:Sound"))
    assert (repaired.verdict, repaired.replay) == ("PASS", "different")
