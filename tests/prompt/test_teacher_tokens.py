"""Stage `teacher_tokens`: every id, mask and position written down by hand."""

from typing import Any

import pytest
import torch

from sdpo.prompt import teacher_tokens
from sdpo.prompt.demonstrations import RepromptWarning
from tests.helpers.char_tokenizer import CharTokenizer, NoPadding, chars, ids, user


def tokens(
    messages: Any, responses: Any, mask: Any, **changes: Any
) -> teacher_tokens.TeacherTokens:
    options: dict[str, Any] = {
        "max_reprompt_len": 99,
        "reprompt_truncation": "error",
        "chat_template_kwargs": None,
        **changes,
    }
    tokenizer = options.pop("tokenizer", CharTokenizer())
    return teacher_tokens.teacher_tokens(messages, responses, mask, tokenizer, **options)


def test_left_padded_prompt_then_response():
    """Prompts `u:q|A:` (6 ids) and `u:abc|A:` (8): width 8, then 3 response places."""
    mask = torch.tensor([[1, 0, 1], [1, 1, 0]])
    built = tokens([user("q"), user("abc")], ids("xyz", "xy", width=3), mask)
    assert [chars(row) for row in built.input_ids] == ["__u:q|A:xyz", "u:abc|A:xy_"]
    assert built.attention_mask.tolist() == [
        [0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1],
        [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0],
    ]
    assert built.position_ids.tolist() == [
        [0, 0, 0, 1, 2, 3, 4, 5, 6, 6, 7],
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9],
    ]


@pytest.mark.parametrize(
    ("side", "expected"), [("right", ["u:q|A", "u:abc"]), ("left", [":q|A:", "bc|A:"])]
)
def test_cut_on_either_side(side: str, expected: list[str]):
    with pytest.warns(RepromptWarning, match=f"max_reprompt_len=5 were cut on the {side}"):
        built = tokens(
            [user("q"), user("abc")],
            ids("x", "y", width=1),
            torch.ones(2, 1),
            max_reprompt_len=5,
            reprompt_truncation=side,
        )
    assert [chars(row)[:5] for row in built.input_ids] == expected


def test_error_is_raised_only_for_a_prompt_over_the_limit():
    """`u:abc|A:` has 8 ids: a limit of 8 holds it, a limit of 7 does not."""
    arguments = [user("q"), user("abc")], ids("x", "y", width=1), torch.ones(2, 1)
    assert tokens(*arguments, max_reprompt_len=8).input_ids.shape == (2, 9)
    with pytest.raises(ValueError, match=r"row 1 has 8 tokens, .* max_reprompt_len=7.*raise"):
        tokens(*arguments, max_reprompt_len=7)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.int32])
def test_outputs_are_int64_whatever_the_masks_dtype(dtype: torch.dtype):
    built = tokens([user("q")], ids("x", width=1).int(), torch.ones(1, 1, dtype=dtype))
    assert {tensor.dtype for tensor in built} == {torch.int64}


def test_only_the_thinking_switch_reaches_the_template():
    arguments = [user("q")], ids("x", width=1), torch.ones(1, 1)
    off = tokens(*arguments, chat_template_kwargs={"enable_thinking": False})
    assert chars(off.input_ids[0]) == "u:q|A:#x"
    with pytest.warns(RepromptWarning, match=r"\['effort'\] do not reach the teacher's prompt"):
        other = tokens(*arguments, chat_template_kwargs={"effort": "low"})
    assert chars(other.input_ids[0]) == "u:q|A:x"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reprompt_truncation": "middle"}, r"'middle', not one of \('right', 'left', 'error'\)"),
        ({"max_reprompt_len": 0}, "max_reprompt_len is 0, it must be at least 1"),
        ({"tokenizer": NoPadding()}, "no padding token.*tokenizer.pad_token ="),
    ],
)
def test_options_out_of_range(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        tokens([user("q")], ids("x", width=1), torch.ones(1, 1), **changes)


def test_token_arguments_must_agree():
    with pytest.raises(ValueError, match=r"must both be \(B, R\)"):
        tokens([user("q")], ids("x", width=1), torch.ones(1, 2))
    with pytest.raises(ValueError, match="messages 2, responses 1"):
        tokens([user("q")] * 2, ids("x", width=1), torch.ones(1, 1))
    with pytest.raises(ValueError, match="batch is empty"):
        tokens([], torch.zeros(0, 1).long(), torch.zeros(0, 1))
