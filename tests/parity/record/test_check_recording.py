"""A packaged case recorded again: which fields and tensors differ, and what that means."""

from dataclasses import replace

import pytest
import torch

from sdpo.fixtures import packaged_family
from sdpo.parity.record.check_recording import (
    Found,
    check_case,
    differing_fields,
    same,
    where,
)
from sdpo.parity.record.recipes import Recording, recipe_of, recording
from sdpo.parity.record.recorder import CaseRecorder

GOLDEN = packaged_family("loss").case("P-L001")


class Recorder(CaseRecorder):
    """Gives what is there already, with some tensors and facts changed."""

    def __init__(self, tensors=None, **facts):
        self.tensors, self.facts = tensors or {}, facts

    def record(self, recipe) -> Recording:
        golden = GOLDEN.tensors()
        made = recording(recipe, golden | self.tensors, {})
        entry = {**GOLDEN.entry, **self.facts}
        if self.tensors:
            entry["sha256"] = made.entry["sha256"]
        return replace(made, entry=entry)


def test_the_recorded_bits_are_the_same():
    checked = check_case(Recorder(), packaged_family("loss"), GOLDEN)
    assert (checked.found, checked.where) == (Found.SAME, "")


def test_another_tensor_of_a_loss_is_named_and_no_processor_excuses_it():
    recorder = Recorder({"out.loss": torch.tensor(0.0)}, loss=0.0)
    checked = check_case(recorder, packaged_family("loss"), GOLDEN)
    assert (checked.found, checked.where) == (Found.DIFFERENT, "out.loss, loss")


def test_the_first_four_names_are_told_and_the_others_counted():
    changed = {name: value * 0 for name, value in GOLDEN.tensors().items() if "out." in name}
    made = Recorder(changed).record(recipe_of(GOLDEN))
    names = where(GOLDEN, made, differing_fields(GOLDEN, made)).split(", ")
    assert len(names) == 4
    assert names[-1].endswith(" more")


@pytest.mark.parametrize(
    ("recorded", "made", "equal"),
    [(1, 1.0, True), (float("nan"), "nan", True), (1, 2, False), ([0.5], [0.5], True)],
)
def test_nan_is_itself_in_a_manifest(recorded, made, equal):
    assert same(recorded, made) == equal
