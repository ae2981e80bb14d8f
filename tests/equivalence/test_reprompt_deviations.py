"""Every intended difference between the readable teacher prompt and the reference, on both sides.

Case P-R011 (four rows, one success, feedback for each) is changed in one respect. The
tests say what each implementation makes of it. None of the differences shows in a recorded case.
"""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from sdpo.prompt.demonstrations import RepromptWarning, successes
from sdpo.prompt.teacher_batch import Attempts, TeacherBatch, teacher_batch
from sdpo.reference import teacher_prompt as reference
from sdpo.settings.stage_settings import PromptSettings
from sdpo.settings.templates import TemplateError
from tests.helpers.recorded.reprompt_records import CASES, TENSORS, new_tokenizer

CASE = CASES["P-R011"]


def call(**changes: Any) -> dict[str, Any]:
    """Arguments of the reference, with some of them changed; settings by their own names."""
    inputs, tensors = CASE.entry["inputs"], TENSORS[CASE.id]
    recorded = dict(CASE.config["self_distillation"])
    arguments = {
        "responses": tensors["in.responses"],
        "response_mask": tensors["in.response_mask"],
        "token_level_rewards": tensors["in.token_level_rewards"],
        "raw_prompt": inputs["raw_prompt"],
        "uids": inputs["uids"],
        "reward_extra_infos": inputs["reward_extra_infos"],
        "apply_chat_template_kwargs": CASE.config["apply_chat_template_kwargs"],
        "tokenizer": new_tokenizer(),
    }
    arguments.update({name: x for name, x in changes.items() if name in arguments})
    recorded.update({name: x for name, x in changes.items() if name in recorded})
    assert changes.keys() <= arguments.keys() | recorded.keys()
    return {**arguments, "self_distillation": recorded}


def run_reference(**changes: Any) -> reference.TeacherBatch:
    arguments = call(**changes)
    reference.set_tokenizer_sides(arguments["tokenizer"], arguments["self_distillation"])
    batch = reference.build_teacher_batch(**arguments, loss_mode="sdpo")
    assert batch is not None
    return batch


def run_sdpo(**changes: Any) -> TeacherBatch:
    arguments = call(**changes)
    settings = PromptSettings(**arguments.pop("self_distillation"))
    template_kwargs = arguments.pop("apply_chat_template_kwargs")
    tokenizer = arguments.pop("tokenizer")
    infos = arguments.pop("reward_extra_infos") or {}
    attempts = Attempts(**arguments, feedback_raw=infos.get("feedback", ()))
    return teacher_batch(attempts, tokenizer, settings, chat_template_kwargs=template_kwargs)


class Raises(NamedTuple):
    changes: dict[str, Any]
    reference: type[Exception] | None
    ours: type[Exception] | None
    message: str | None = None


MULTIMODAL = [[{"role": "user", "content": [{"type": "text", "text": "q"}]}]] * 4
NO_SUCCESS = torch.zeros_like(TENSORS[CASE.id]["in.token_level_rewards"])
UNUSED = {"token_level_rewards": NO_SUCCESS, "include_environment_feedback": False}
DIFFERENT_ERRORS = {
    "error mode accepts prompts within the limit": Raises(
        {"reprompt_truncation": "error"}, ValueError, None
    ),
    "unknown slot": Raises(
        {"reprompt_template": "{problem}"}, KeyError, TemplateError, "reprompt_template.*{problem}"
    ),
    "positional slot": Raises(
        {"feedback_template": "{}"}, IndexError, TemplateError, "feedback_template.*feedback_raw"
    ),
    "wrong template that no row needs": Raises(
        {"solution_template": "{", **UNUSED}, None, TemplateError, "solution_template.*malformed"
    ),
    "attribute access in a slot": Raises(
        {"reprompt_template": "{prompt.upper}"}, None, TemplateError, "no slot"
    ),
    "one text as feedback of all rows": Raises(
        {"reward_extra_infos": {"feedback": "wrong"}}, None, TypeError, "one entry per row, not str"
    ),
    "mapping as feedback": Raises(
        {"reward_extra_infos": {"feedback": {"a": "x"}}}, KeyError, TypeError, "not dict"
    ),
    "multimodal prompt": Raises({"raw_prompt": MULTIMODAL}, None, TypeError, "multimodal"),
}


@pytest.mark.parametrize("case", DIFFERENT_ERRORS.values(), ids=DIFFERENT_ERRORS.keys())
def test_different_error(case: Raises):
    for run, error, message in (
        (run_reference, case.reference, None),
        (run_sdpo, case.ours, case.message),
    ):
        if error is None:
            run(**case.changes)
        else:
            with pytest.raises(error, match=message) as raised:
                run(**case.changes)
            assert raised.type is error


WARNINGS = {
    "shorter feedback": ({"reward_extra_infos": {"feedback": ["x"]}}, "1 entries for 4 rows"),
    "longer feedback": ({"reward_extra_infos": {"feedback": ["x"] * 5}}, "5 entries for 4 rows"),
    "feedback that is no text": (
        {"reward_extra_infos": {"feedback": [5, "x", None, ""]}},
        "row 0 is int, not text",
    ),
    "chat template arguments": (
        {"apply_chat_template_kwargs": {"effort": 1}},
        r"\['effort'\] do not reach the teacher's prompt",
    ),
    "cut prompts": ({"max_reprompt_len": 20}, "max_reprompt_len=20 were cut on the right"),
}


@pytest.mark.parametrize(("changes", "message"), WARNINGS.values(), ids=WARNINGS.keys())
def test_warning_in_place_of_silence(changes: dict[str, Any], message: str):
    expected = run_reference(**changes)
    with pytest.warns(RepromptWarning, match=message):
        actual = run_sdpo(**changes)
    assert torch.equal(actual.tokens.input_ids, expected.tensors["teacher_input_ids"])
    assert actual.metrics == expected.metrics


def test_array_as_feedback_of_a_row_is_dropped_like_other_values():
    changes = {"reward_extra_infos": {"feedback": [np.array([1, 2]), "x", None, None]}}
    with pytest.raises(ValueError, match="truth value"):
        run_reference(**changes)
    with pytest.warns(RepromptWarning, match="row 0 is ndarray, not text"):
        assert run_sdpo(**changes).trace["feedback"] == [None, "x", None, None]


def test_tensor_uids_group_rows_by_value():
    uids = [torch.tensor(7)] * 2 + [torch.tensor(7), torch.tensor(7)]
    expected = run_sdpo().trace["demonstration"]
    assert run_sdpo(uids=uids).trace["demonstration"] == expected
    assert run_reference(uids=uids).trace["demonstration"] != expected


def test_float_response_mask_gives_an_integer_attention_mask():
    mask = TENSORS[CASE.id]["in.response_mask"].float()
    attention = run_reference(response_mask=mask).tensors["teacher_attention_mask"]
    assert attention.dtype == torch.float32
    assert run_sdpo(response_mask=mask).tokens.attention_mask.dtype == torch.int64


def test_tokenizer_settings_are_left_alone():
    tokenizer = new_tokenizer()
    run_sdpo(tokenizer=tokenizer, reprompt_truncation="left")
    assert (tokenizer.padding_side, tokenizer.truncation_side) == ("right", "right")
    run_reference(tokenizer=tokenizer, reprompt_truncation="left")
    assert (tokenizer.padding_side, tokenizer.truncation_side) == ("left", "left")


def test_half_precision_rewards_are_summed_in_float32():
    """1000 bfloat16 rewards of 0.00099945…: 0.99945 in float32, rounded up to 1.0 in bfloat16."""
    rewards = torch.full((1, 1000), 1 / 1000.9, dtype=torch.bfloat16)
    assert rewards[0, 0].item() * 1000 < 0.9995
    assert successes(rewards, 1.0) == [False]
    assert reference.successes_by_uid(rewards, ["a"], 1.0) == {"a": [0]}
