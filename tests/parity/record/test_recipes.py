"""A case before and after it is recorded: what is asked for is told from what came of it."""

import hashlib
import math

import pytest
import torch

from sdpo.fixtures import packaged_family
from sdpo.parity.record.recipes import Recipe, is_input, json_values, recipe_of, recording


@pytest.mark.parametrize(
    ("name", "given"),
    [("in.responses", True), ("u0.in.responses", True), ("out.loss", False), ("u0.mb0.in", False)],
)
def test_inputs_are_known_by_their_names(name, given):
    assert is_input(name) == given


def test_a_recipe_of_a_recorded_case_holds_no_result():
    recipe = recipe_of(packaged_family("loss").case("P-L001"))
    assert recipe.id == "P-L001"
    assert not set(recipe.given) & {"loss", "sha256", "tensors", "file"}
    assert all(name.startswith("in.") for name in recipe.inputs)


def test_a_recording_has_the_hash_of_its_bytes_and_the_layout_of_its_tensors():
    recipe = Recipe("loss", {"id": "A", "config": {}}, {"in.a": torch.tensor([1, 2])})
    made = recording(recipe, {"out.b": torch.tensor(0.5)}, {"loss": math.nan})
    assert made.entry["sha256"] == hashlib.sha256(made.data).hexdigest()
    assert made.entry["tensors"] == {"in.a": ["int64", [2]], "out.b": ["float32", []]}
    assert (made.file, made.entry["loss"]) == ("A.safetensors", "nan")


def test_numbers_that_are_not_finite_are_texts_in_a_manifest():
    values = {"a": (math.inf, 1.0), "b": [torch.tensor(2)], 3: -math.inf}
    assert json_values(values) == {"a": ["inf", 1.0], "b": [2], "3": "-inf"}
