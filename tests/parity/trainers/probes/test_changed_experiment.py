"""When two runs are one experiment, so that nothing can be told from them."""

from dataclasses import replace
from typing import Any

import torch

from sdpo.parity.compare.statuses import Status
from sdpo.parity.trainers.probes.changed_experiment import (
    changed,
    unseen_settings,
    why_one_experiment,
)
from sdpo.parity.trainers.recording.fingerprints import PARTS
from sdpo.parity.trainers.scenarios.catalogue import BY_ID, PLAIN
from sdpo.parity.trainers.scenarios.training_record import TrainerRun

OTHER = replace(PLAIN, temperature=0.7)
DISGUISED = replace(PLAIN, disguise="left padding")
GIVEN = dict.fromkeys(PARTS, "a")


def refusal(before, after, ours, theirs) -> Any:
    return why_one_experiment(before, after, TrainerRun(given=ours), TrainerRun(given=theirs))


def test_a_script_that_differs_by_its_name_alone_is_an_error():
    found = refusal(PLAIN, replace(PLAIN, id="T99"), {}, {})
    assert (found.status, "not changed" in found.note) == (Status.ERROR, True)


def test_a_trainer_that_was_handed_the_same_is_an_error():
    found = refusal(PLAIN, OTHER, GIVEN, GIVEN)
    assert (found.status, "hands the trainer nothing else" in found.note) == (Status.ERROR, True)


def test_one_other_fingerprint_is_another_experiment():
    assert refusal(PLAIN, OTHER, GIVEN, GIVEN | {"arguments": "b"}) is None


def test_a_loop_that_does_not_play_a_disguise_is_not_covered():
    found = refusal(PLAIN, DISGUISED, {}, {})
    assert (found.status, "'left padding'" in found.note) == (Status.NOT_COVERED, True)
    assert refusal(PLAIN, OTHER, {}, {}) is None


def test_first_weights_that_differ_show_the_change():
    ours, theirs = (TrainerRun(initial={"w": torch.full((1,), w)}) for w in (1.0, 2.0))
    assert why_one_experiment(PLAIN, DISGUISED, ours, theirs) is None


def test_settings_that_are_not_read_back_are_named():
    before, after = BY_ID["T01"], BY_ID["T14"]
    assert unseen_settings(before, after, TrainerRun({"alpha": 1.0})) is None
    found = unseen_settings(before, after, TrainerRun({"alpha": 0.5}))
    assert found is not None
    assert "does not show alpha" in found.note


def test_names_with_other_values_or_on_one_side_only():
    one = torch.ones(1)
    ours = {"a": 1, "b": one, "c": one, "d": 0, "e": None}
    theirs = {"a": 1, "b": one.clone(), "c": one * (1 + 2**-23), "d": 0.0}
    assert changed(ours, theirs) == {"c", "d"}
