"""Templates are checked before a row needs them."""

import pytest

from sdpo.settings.templates import TemplateError, check_template


@pytest.mark.parametrize(
    "template",
    [
        "{prompt}{solution}{feedback}",
        "no slot",
        "{prompt}{prompt}",
        "{prompt!r:>60}",
        "{{literal}}",
    ],
)
def test_slots_may_be_left_out_repeated_and_formatted(template):
    check_template("reprompt_template", template)


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{answer}", "no slot '{answer}'"),
        ("{}", "no slot '{}'"),
        ("{feedback_raw.upper}", "no slot"),
        ("{feedback_raw", "malformed"),
        ("{feedback_raw:d}", "cannot be filled"),
        ("{feedback_raw:{prompt}}", "slot inside its format"),
    ],
)
def test_what_cannot_be_filled_is_refused_with_the_slots_that_exist(template, problem):
    with pytest.raises(TemplateError) as caught:
        check_template("feedback_template", template)
    assert problem in str(caught.value)
    assert "feedback_template" in str(caught.value)
    assert "allowed slots: {feedback_raw}" in str(caught.value)


def test_a_template_is_text():
    with pytest.raises(TemplateError, match="must be text, not NoneType"):
        check_template("solution_template", None)  # pyright: ignore[reportArgumentType]
