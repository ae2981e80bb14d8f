"""Stages `teacher_prompt` and `distillation_mask`, on texts that are written down."""

import re
from typing import Any

import pytest
import torch

from sdpo.prompt import teacher_prompt
from sdpo.prompt.demonstrations import Demonstration
from sdpo.settings.templates import TemplateError
from tests.helpers.char_tokenizer import TEMPLATES, user

# teacher_prompt


def prompt(raw_prompt: Any, shown: Any, feedbacks: Any, **changes: Any) -> Any:
    options = {"environment_feedback_only_without_solution": True, **TEMPLATES, **changes}
    return teacher_prompt.teacher_prompt(raw_prompt, shown, feedbacks, **options)


def test_sections_appear_where_they_are_used():
    shown = [None, Demonstration(0, "s"), None, Demonstration(0, "s")]
    feedbacks = [None, None, "f", "f"]
    built = prompt([user("q")] * 4, shown, feedbacks)
    assert [m[-1]["content"] for m in built] == ["q", "q S=s!", "q F=f!", "q S=s!"]
    built = prompt(
        [user("q")] * 4, shown, feedbacks, environment_feedback_only_without_solution=False
    )
    assert built[3][-1]["content"] == "q S=s F=f!"


def test_history_stays_and_the_last_message_becomes_a_user_message():
    messages = [{"role": "system", "content": "s"}, {"role": "tool", "content": "q"}]
    before = [dict(message) for message in messages]
    built = prompt([messages], [None], [None])
    assert built == [[before[0], {"role": "user", "content": "q"}]]
    built[0][0]["content"] = "changed"
    assert messages == before


def test_text_in_a_slot_is_not_interpreted():
    built = prompt([user("{x} {{")], [Demonstration(0, "{prompt}")], [None])
    assert built[0][-1]["content"] == "{x} {{ S={prompt}!"


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{problem}", "no slot '{problem}'"),
        ("{}", "no slot '{}'"),
        ("{0}", "no slot '{0}'"),
        ("{prompt.upper}", "no slot '{prompt.upper}'"),
        ("{prompt", "malformed"),
        ("}", "malformed"),
        ("{prompt:d}", "cannot be filled"),
        ("{prompt!x}", "cannot be filled"),
        ("{prompt:{solution}}", "slot inside its format"),
        (None, "must be text, not NoneType"),
    ],
)
def test_wrong_template_is_refused_before_any_row_needs_it(template: Any, problem: str):
    with pytest.raises(TemplateError, match=f"reprompt_template.*{re.escape(problem)}") as raised:
        prompt([user("q")], [None], [None], reprompt_template=template)
    if template is not None:
        assert "allowed slots: {prompt}, {solution}, {feedback}" in str(raised.value)


PARTS = [{"type": "text", "text": "q"}, {"type": "image"}]


@pytest.mark.parametrize(
    ("messages", "place", "kind"),
    [
        ([{"role": "user", "content": PARTS}], 0, "list"),
        ([{"role": "user", "content": PARTS}, *user("q")], 0, "list"),
        ([*user("q"), {"role": "tool", "content": None}], 1, "NoneType"),
    ],
)
def test_content_that_is_no_text_is_refused(messages: Any, place: int, kind: str):
    with pytest.raises(TypeError, match=f"row 1: the content of message {place} is {kind}, not"):
        prompt([user("q"), messages], [None, None], [None, None])


def test_history_may_have_a_message_without_text():
    call = {"role": "assistant", "content": None, "tool_calls": []}
    assert prompt([[call, *user("q")]], [None], [None])[0][0] == call


def test_prompt_arguments_must_agree():
    with pytest.raises(ValueError, match="raw_prompt 2, demonstrations 1"):
        prompt([user("q")] * 2, [None], [None])
    with pytest.raises(ValueError, match="demonstrations 1, feedbacks 2"):
        prompt([user("q")], [None], [None, None])
    with pytest.raises(ValueError, match="row 0 has no message"):
        prompt([[]], [None], [None])


# distillation_mask


def test_mask_marks_rows_with_a_signal():
    shown = [None, Demonstration(0, ""), None]
    mask = teacher_prompt.distillation_mask(
        shown, [None, None, "f"], environment_feedback_only_without_solution=True
    )
    assert mask.dtype == torch.float32
    assert mask.tolist() == [0.0, 1.0, 1.0]
