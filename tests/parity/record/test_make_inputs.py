"""Inputs made from shapes, dtypes and seeds."""

from typing import Any

import msgspec
import pytest
import torch

from sdpo.fixtures import PACKAGED
from sdpo.fixtures.loader import SUPPLEMENT, load_family
from sdpo.parity.record.case_list import LossEntry, PromptEntry, UpdateEntry, read_case_list
from sdpo.parity.record.make_inputs import (
    loss_recipe,
    on_grid,
    prompt_recipe,
    repeated,
    update_recipe,
)
from sdpo.parity.record.recipes import Recipe


def loss(**given: Any) -> Recipe:
    usual = {"id": "A", "description": "", "tags": [], "seed": 3, "rows": 2, "tokens": 4}
    return loss_recipe(msgspec.convert(usual | {"vocabulary": 5} | given, LossEntry))


def test_the_grid_is_that_of_1024ths():
    assert on_grid(torch.tensor([0.0004, 0.0006, 1.5])).tolist() == [0.0, 1 / 1024, 1.5]


def test_the_same_seed_gives_the_same_inputs_and_another_one_others():
    one, again, other = loss(), loss(), loss(seed=4)
    assert all(one.inputs[name].equal(again.inputs[name]) for name in one.inputs)
    assert not one.inputs["in.student_logits"].equal(other.inputs["in.student_logits"])


def test_lengths_make_the_mask_in_the_dtype_asked_for():
    mask = loss(lengths=[3, 1], mask_dtype="uint8").inputs["in.response_mask"]
    assert mask.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    assert mask.dtype == torch.uint8


def test_logits_are_exact_in_the_dtypes_of_both_sides():
    recipe = loss(dtype="bfloat16", teacher_dtype="float32")
    student, teacher = (recipe.inputs[f"in.{s}_logits"] for s in ("student", "teacher"))
    assert student.equal(student.bfloat16().float())
    assert not teacher.equal(teacher.bfloat16().float())
    assert recipe.config["teacher_dtype"] == "float32"


@pytest.mark.parametrize(
    ("given", "mode"),
    [
        ({"full_logit_distillation": False}, "sampled"),
        ({}, "full_vocab"),
        ({"distillation_topk": 3}, "topk_tail"),
        ({"distillation_topk": 3, "distillation_add_tail": False}, "topk_renorm"),
    ],
)
def test_the_mode_is_named_by_the_settings(given, mode):
    assert loss(**given).config["mode"] == mode


def test_weights_are_given_one_after_the_other():
    assert repeated([0.0, 1.5, 3.0], (2, 2)).tolist() == [[0.0, 1.5], [3.0, 0.0]]


def test_an_attempt_is_padded_and_rewarded_at_its_last_token():
    def tokenizer(text, add_special_tokens):
        return {"input_ids": [ord(letter) for letter in text]}

    entry = PromptEntry(
        id="R",
        description="",
        tags=[],
        prompts=["?", "?"],
        uids=["u", "u"],
        responses=["ab", ""],
        rewards=[1.0, 0.5],
        width=3,
    )
    inputs = prompt_recipe(entry, tokenizer).inputs
    assert inputs["in.responses"].tolist() == [[97, 98, 421], [421, 421, 421]]
    assert inputs["in.response_mask"].tolist() == [[1, 1, 0], [0, 0, 0]]
    assert inputs["in.token_level_rewards"].tolist() == [[0.0, 1.0, 0.0], [0.5, 0.0, 0.0]]


def test_a_batch_of_an_update_pads_prompts_left_and_responses_right():
    entry = UpdateEntry(
        id="U",
        description="",
        tags=[],
        seed=1,
        lengths=[3, 1],
        self_distillation={"is_clip": "none"},
        updates=2,
    )
    recipe = update_recipe(entry)
    assert recipe.config["self_distillation"]["is_clip"] is None
    mask = recipe.inputs["u1.in.attention_mask"]
    assert mask[:, -3:].tolist() == [[1, 1, 1], [1, 0, 0]]
    prompt = mask[:, :-3]
    assert (prompt.diff(dim=1) >= 0).all()
    assert recipe.inputs["u0.in.position_ids"].min() == 0


def test_the_packaged_list_makes_the_inputs_of_the_packaged_supplement():
    cases = read_case_list(PACKAGED.parent / "supplement.toml")
    recorded = load_family(SUPPLEMENT, "loss")
    assert [entry.id for entry in cases.loss] == [case.id for case in recorded]
    for entry, case in zip(cases.loss[::6], list(recorded)[::6], strict=True):
        recipe, tensors = loss_recipe(entry), case.tensors()
        assert dict(recipe.config) == case.config
        assert recipe.inputs["in.responses"].equal(tensors["in.responses"])
        assert recipe.inputs["in.response_mask"].equal(tensors["in.response_mask"])
        gap = recipe.inputs["in.student_logits"] - tensors["in.student_logits"]
        assert gap.abs().max() <= 1 / 64
