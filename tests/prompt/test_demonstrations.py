"""Stages `feedback` and `demonstration`: expectations derived by hand, errors."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdpo.prompt import demonstrations
from sdpo.prompt.demonstrations import Demonstration, RepromptWarning
from tests.helpers.char_tokenizer import CHOICE, rewards

# feedback


def counting(raw: Any, n_rows: int) -> list[str | None]:
    return demonstrations.feedback(raw, n_rows, include_environment_feedback=True)


def test_feedback_that_counts_is_verbatim_and_not_blank():
    raw = [" a\n", "", " \u3000\t", None]
    assert demonstrations.feedback(raw, 4, include_environment_feedback=True) == [
        " a\n",
        None,
        None,
        None,
    ]


@pytest.mark.parametrize("raw", [None, "one text", {"0": "x"}, 5])
def test_feedback_that_is_no_list_is_refused(raw: Any):
    with pytest.raises(TypeError, match=r"one entry per row, not .*; pass \[\] for no feedback"):
        counting(raw, 2)
    assert demonstrations.feedback(raw, 2, include_environment_feedback=False) == [None, None]


@pytest.mark.parametrize(("raw", "expected"), [(["a"], ["a", None]), (list("abc"), ["a", "b"])])
def test_feedback_of_another_length_is_used_with_a_warning(raw: Any, expected: Any):
    with pytest.warns(RepromptWarning, match=f"feedback has {len(raw)} entries for 2 rows"):
        assert counting(raw, 2) == expected


@pytest.mark.parametrize("odd", [5, 0.0, ["text"], np.array([1, 2])], ids=repr)
def test_feedback_entry_that_is_no_text_is_dropped_with_a_warning(odd: Any):
    with pytest.warns(RepromptWarning, match=f"row 1 is {type(odd).__name__}, not text"):
        found = counting(["a", odd], 2)
    assert found == ["a", None]


def test_feedback_in_an_object_array_or_empty():
    array: Any = np.array(["a", None], dtype=object)
    assert counting(array, 2) == ["a", None]
    assert counting([], 2) == [None, None]


# demonstration


def choose(scores: torch.Tensor, uids: Any, **changes: Any) -> list[int | None]:
    texts = [f"t{row}" for row in range(len(scores))]
    found = demonstrations.demonstration(texts, scores, uids, **{**CHOICE, **changes})
    assert all(x is None or x.text == f"t{x.row}" for x in found)
    return [x and x.row for x in found]


def test_first_other_success_of_the_group():
    scores, uids = rewards(0, 1, 1, 1, 0, 0), list("aaabbc")
    assert choose(scores, uids) == [1, 2, 1, None, 3, None]
    assert choose(scores, uids, dont_reprompt_on_self_success=False) == [1, 1, 1, 3, 3, None]


def test_rewards_are_summed_and_nan_is_no_success():
    scores = torch.tensor([[0.25, 0.25], [1.0, -0.75], [1.0, torch.nan], [torch.inf, 0.0]])
    assert demonstrations.successes(scores, 0.5) == [True, False, False, True]


@pytest.mark.parametrize("threshold", [0.1, 0.7, 0.9])
def test_threshold_is_rounded_like_the_reward(threshold: float):
    assert demonstrations.successes(rewards(threshold), threshold) == [True]
    single = torch.tensor(threshold).item()
    assert demonstrations.successes(rewards(threshold).double(), threshold) == [single >= threshold]


def test_integer_rewards_are_not_compared_as_integers():
    assert demonstrations.successes(torch.tensor([[0], [1]]), 0.5) == [False, True]


def test_tensor_uids_are_compared_by_value():
    assert choose(rewards(1, 0), torch.tensor([7, 7])) == [None, 0]
    assert choose(rewards(1, 0), [torch.tensor(7), 7]) == [None, 0]


def test_demonstration_emptied_by_the_removal_still_counts():
    texts = ["<think>x</think>\n", "y"]
    found = demonstrations.demonstration(texts, rewards(1, 0), "aa", **CHOICE)
    assert found == [None, Demonstration(0, "")]


def test_demonstration_arguments_must_agree():
    with pytest.raises(ValueError, match="response_texts 2, token_level_rewards 2, uids 1"):
        demonstrations.demonstration(["x", "y"], rewards(0, 0), ["a"], **CHOICE)
    with pytest.raises(ValueError, match=r"shape \(2,\), not \(B, R\)"):
        demonstrations.demonstration(["x", "y"], torch.zeros(2), "aa", **CHOICE)


PIECES = st.sampled_from(
    ["<think>", "</think>", "<Think>", "a", " ", "\n", "\u00a0", "\u200b", "<"]
)


@given(st.lists(PIECES).map("".join) | st.text())
def test_removal_is_the_shortest_span_and_its_white_space(text: str):
    assert demonstrations.remove_thinking(text) == re.sub(r"(?s)<think>.*?</think>\s*", "", text)


def test_removal_takes_every_kind_of_white_space():
    blanks = "".join(chr(i) for i in range(0x110000) if chr(i).isspace())
    assert demonstrations.remove_thinking(f"<think></think>{blanks}x") == "x"


@pytest.mark.timeout(5)
@pytest.mark.parametrize(
    ("text", "expected"),
    [("<think>" * 200_000, "<think>" * 200_000), ("<think></think>" * 200_000, "")],
    ids=["unclosed", "closed"],
)
def test_removal_is_linear_in_the_tags(text: str, expected: str):
    assert demonstrations.remove_thinking(text) == expected
