"""The three prompt templates: which slots each has, and a check before any of them is filled.

Templates are Python format strings. Text put into a slot is never interpreted again, so braces in a
prompt, a solution or feedback are safe; only the template itself can be wrong, and a wrong one is
found here at once instead of at the first row that needs it.
"""

from string import Formatter

SLOTS = {
    "reprompt_template": ("prompt", "solution", "feedback"),
    "solution_template": ("successful_previous_attempt",),
    "feedback_template": ("feedback_raw",),
}


class TemplateError(ValueError):
    """A template that cannot be filled: unknown slot, stray brace or wrong format specification."""


def check_template(name: str, template: object) -> None:
    """Check that a template can be filled with any text.

    A slot may be left out, repeated, and carry a conversion and a format specification
    (`{prompt!r:>60}`); a literal brace is doubled.

    Args:
        name: which template, one of `SLOTS`.
        template: the format string.

    Raises:
        TemplateError: not text; a slot that the template does not have, by another name, by
            position, or with attribute or index access; an unmatched brace; or a format
            specification that does not suit text. The message names the template, the slot and
            the allowed slots.

    Source: `verl/trainer/ppo/ray_trainer.py` 719-739 at 0e6d5106, which fills unchecked.
    """
    if not isinstance(template, str):
        raise TemplateError(f"{name} must be text, not {type(template).__name__}")
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise TemplateError(_explain(name, f"{template!r} is malformed ({error})")) from error
    for _, slot, specification, _ in parts:
        if slot is not None and slot not in SLOTS[name]:
            raise TemplateError(_explain(name, f"there is no slot {'{' + slot + '}'!r}"))
        if "{" in (specification or ""):
            raise TemplateError(_explain(name, f"the slot {slot!r} has a slot inside its format"))
    try:
        template.format(**dict.fromkeys(SLOTS[name], ""))
    except ValueError as error:
        raise TemplateError(_explain(name, f"{template!r} cannot be filled ({error})")) from error


def _explain(name: str, problem: str) -> str:
    allowed = ", ".join("{" + slot + "}" for slot in SLOTS[name])
    return (
        f"{name}: {problem}; allowed slots: {allowed}; a literal brace is written '{{{{' or '}}}}'"
    )
