"""Stages `teacher_prompt` and `distillation_mask`: what the teacher reads, and who learns from it.

The teacher sees the student's prompt plus a successful attempt of the same group, or the
environment's feedback. Symbol: `B` rows.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sdpo.prompt.demonstrations import Demonstration, check_rows
from sdpo.settings.templates import check_template

Message = dict[str, Any]


def used_feedback(
    demonstrations: Sequence[Demonstration | None],
    feedbacks: Sequence[str | None],
    *,
    environment_feedback_only_without_solution: bool,
) -> list[str | None]:
    """Select the feedback that enters a prompt: all, or only where there is no demonstration.

    Args:
        demonstrations: from `demonstration`, B entries.
        feedbacks: from `feedback`, B entries.
        environment_feedback_only_without_solution: a demonstration displaces feedback.

    Returns:
        B entries, None where no feedback is used.

    Raises:
        ValueError: the arguments differ in length.

    Source: `verl/trainer/ppo/ray_trainer.py` 713-717 at 0e6d5106.
    """
    check_rows(demonstrations=demonstrations, feedbacks=feedbacks)
    return [
        None if environment_feedback_only_without_solution and shown is not None else text
        for shown, text in zip(demonstrations, feedbacks, strict=True)
    ]


def teacher_prompt(
    raw_prompt: Sequence[Sequence[Message]],
    demonstrations: Sequence[Demonstration | None],
    feedbacks: Sequence[str | None],
    *,
    environment_feedback_only_without_solution: bool,
    reprompt_template: str,
    solution_template: str,
    feedback_template: str,
) -> list[list[Message]]:
    """Stage `teacher_prompt`: the messages that the teacher is asked with.

    The last message becomes a user message whose text has the demonstration and the used feedback
    added; a row with neither keeps its text. All messages before it stay, a system message too.

    Args:
        raw_prompt: per row the messages, each with `role` and a text as `content`.
        demonstrations: from `demonstration`, B entries.
        feedbacks: from `feedback`, B entries.
        environment_feedback_only_without_solution: a demonstration displaces feedback.
        reprompt_template: slots `prompt`, `solution`, `feedback`.
        solution_template: slot `successful_previous_attempt`; fills `solution`.
        feedback_template: slot `feedback_raw`; fills `feedback`.

    Returns:
        New lists of messages; the arguments stay as they are.

    Raises:
        TemplateError: a template cannot be filled, whether a row needs it or not.
        TypeError: a message's content is a list (multimodal), or the last one's is not text.
        ValueError: the arguments disagree on B, or a row has no message.

    Source: `verl/trainer/ppo/ray_trainer.py` 710-745 at 0e6d5106.
    """
    check_template("reprompt_template", reprompt_template)
    check_template("solution_template", solution_template)
    check_template("feedback_template", feedback_template)
    check_rows(raw_prompt=raw_prompt, demonstrations=demonstrations)
    used = used_feedback(
        demonstrations,
        feedbacks,
        environment_feedback_only_without_solution=environment_feedback_only_without_solution,
    )
    prompts = []
    for row, (messages, shown, text) in enumerate(
        zip(raw_prompt, demonstrations, used, strict=True)
    ):
        question = _last_text(row, messages)
        solution = feedback_section = ""
        if shown is not None:
            solution = solution_template.format(successful_previous_attempt=shown.text)
        if text is not None:
            feedback_section = feedback_template.format(feedback_raw=text)
        if shown is not None or text is not None:
            question = reprompt_template.format(
                prompt=question, solution=solution, feedback=feedback_section
            )
        history = [dict(message) for message in messages[:-1]]
        prompts.append([*history, {"role": "user", "content": question}])
    return prompts


def _last_text(row: int, messages: Sequence[Message]) -> str:
    """The text of a row's last message, once the row is known to be text only."""
    if not messages:
        raise ValueError(f"raw_prompt of row {row} has no message; it needs at least a question")
    for place, message in enumerate(messages):
        content = message.get("content")
        last = place == len(messages) - 1
        if isinstance(content, list | tuple) or (last and not isinstance(content, str)):
            raise TypeError(
                f"raw_prompt of row {row}: the content of message {place} is "
                f"{type(content).__name__}, not text; multimodal prompts are not supported, so "
                "pass the text alone or leave such rows out"
            )
    return messages[-1]["content"]


def distillation_mask(
    demonstrations: Sequence[Demonstration | None],
    feedbacks: Sequence[str | None],
    *,
    environment_feedback_only_without_solution: bool,
) -> Tensor:
    """Stage `distillation_mask`: the rows whose teacher knows more than the student.

    Args:
        demonstrations: from `demonstration`, B entries.
        feedbacks: from `feedback`, B entries.
        environment_feedback_only_without_solution: a demonstration displaces feedback.

    Returns:
        `(B,)` float32, 1 where a demonstration exists or feedback is used, else 0.

    Raises:
        ValueError: the arguments differ in length.

    Source: `verl/trainer/ppo/ray_trainer.py` 766-778 at 0e6d5106.
    """
    used = used_feedback(
        demonstrations,
        feedbacks,
        environment_feedback_only_without_solution=environment_feedback_only_without_solution,
    )
    signal = [
        shown is not None or text is not None
        for shown, text in zip(demonstrations, used, strict=True)
    ]
    return torch.tensor(signal, dtype=torch.float32)
