"""Replay bundles of trainers: a scenario as JSON, read without trust, shrunk and run again."""

import json
import zipfile
from dataclasses import replace

import pytest

from sdpo.parity.audit.rejudge_and_replay import replay_text
from sdpo.parity.bundles import scenario_bundle
from sdpo.parity.bundles.loss_bundle import BundleError
from sdpo.parity.bundles.make_and_replay import make, replay
from sdpo.parity.bundles.scenario_bundle import DOCUMENT, TrainerBundle, read, write
from sdpo.parity.bundles.shrink_scenario import MOST_TRIES, shrink
from sdpo.parity.trainers.scenarios.catalogue import BY_ID, PLAIN
from tests.helpers.trainers import faulty_adapter

pytestmark = pytest.mark.usefixtures("packages_are_looked_up_once")

SEEN = {"status": "DIVERGENT", "first_stage": "aggregate", "note": "n"}
BUNDLE = TrainerBundle(PLAIN, "trl", SEEN, {"tries": 1}, {"torch": "2"}, "sdpo audit trl", "00")


def rewritten(path, text, name=DOCUMENT):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, text)


def test_a_bundle_is_read_as_it_was_written_and_has_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name, BUNDLE)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert read(tmp_path / "a") == BUNDLE
    assert scenario_bundle.is_trainer_bundle(tmp_path / "a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "must have the fields"),
        ("{", "not in the format"),
        ("[" * 100_000, "not in the format"),
        ("0" * (scenario_bundle.LARGEST + 1), "larger than 1 MiB"),
        (json.dumps({"schema_version": 1}), "must have the fields"),
    ],
)
def test_a_damaged_bundle_is_refused(text, message, tmp_path):
    rewritten(tmp_path / "b.zip", text)
    with pytest.raises(BundleError, match=message):
        read(tmp_path / "b.zip")


def test_an_archive_with_other_members_is_no_bundle_of_a_scenario(tmp_path):
    rewritten(tmp_path / "b.zip", "{}", "other.json")
    assert not scenario_bundle.is_trainer_bundle(tmp_path / "b.zip")
    with pytest.raises(BundleError):
        replay({"bundle": str(tmp_path / "b.zip"), "candidate": ""})


def test_a_scenario_shrinks_to_what_still_fails():
    # fails as long as a failed row is beside a success
    def fails(scenario):
        first = scenario.generations[0]
        rewards = {row.reward for row in first.rollouts}
        return rewards == {0.0, 1.0}

    shrunk = shrink(BY_ID["T32"], fails)
    assert shrunk.tries <= MOST_TRIES
    assert (len(shrunk.scenario.generations), shrunk.scenario.processes) == (1, 1)
    found = shrink(BY_ID["T32"], fails, 100).scenario
    assert len(found.generations[0].rollouts) == 2
    assert found.optimizer == PLAIN.optimizer
    assert shrink(BY_ID["T32"], lambda _: False, 100).scenario == BY_ID["T32"]


def test_the_smallest_scenario_of_each_stage_is_packed_first():
    asked_more = replace(PLAIN, id="more", generations=(PLAIN.generations[0],) * 2)
    failing = [(asked_more, "aggregate"), (BY_ID["T10"], "optimizer"), (PLAIN, "aggregate")]
    chosen = scenario_bundle.smallest_first(failing)
    assert [scenario.id for scenario in chosen] == ["T01", "T10", "more"]


FAULTY = faulty_adapter.__file__


@pytest.mark.slow
def test_a_failing_scenario_is_packed_small_and_replays_with_the_same_verdict(tmp_path):
    request = {"candidate": f"{FAULTY}:HalfGradient", "goldens": [], "command": "c"}
    cases = [["T07", "gradient"]]
    made = make(request | {"cases": cases, "folder": str(tmp_path), "count": 1})
    (row,) = made["bundles"]
    assert row["before"] == [3, 1, 4]
    assert row["after"] == [1, 1, 2]
    path = str(tmp_path / "T07.zip")
    again = replay({"bundle": path, "candidate": ""})
    assert (again["verdict"], again["first_stage"], again["replay"]) == (
        "DIVERGENT",
        "gradient",
        "same",
    )
    assert again["environment_differs"] == {}
    assert "groups: 1, rows: 2" in replay_text(again)
    repaired = replay({"bundle": path, "candidate": f"{FAULTY}:Sound"})
    assert (repaired["verdict"], repaired["replay"]) == ("PASS", "different")
