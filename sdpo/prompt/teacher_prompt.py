"""The teacher's inputs: from a batch of attempts, rewards and feedback to token ids and a row mask.

    responses, rewards ─ demonstration ─┬─ teacher_prompt ─ teacher_tokens ─► ids, mask, positions
    environment ──────── feedback ──────┴─ distillation_mask ───────────────► rows with a signal

The teacher sees the student's prompt plus a successful attempt of the same group, or the
environment's feedback, and then scores the student's own response. Each stage is a pure function
of its arguments; `teacher_batch` puts them together. The tokenizer is an argument, and its settings
are left alone. Symbols: `B` rows, `R` response width, `L` width of the teacher prompt.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdpo.prompt.demonstrations import (
    Demonstration,
    RepromptWarning,
    check_rows,
    demonstration,
    feedback,
    group_ids,
    remove_thinking,
    response_texts,
    successes,
)
from sdpo.prompt.teacher_tokens import TeacherTokens, teacher_tokens
from sdpo.settings.templates import TemplateError, check_template

__all__ = [
    "Demonstration",
    "RepromptWarning",
    "TeacherBatch",
    "TeacherTokens",
    "TemplateError",
    "demonstration",
    "distillation_mask",
    "feedback",
    "needs_teacher_batch",
    "remove_thinking",
    "reprompt_metrics",
    "response_texts",
    "successes",
    "teacher_batch",
    "teacher_prompt",
    "teacher_tokens",
    "used_feedback",
]

Message = dict[str, Any]


class TeacherBatch(NamedTuple):
    """Everything a training step needs from here, and how it came about.

    `distillation_mask` is `(B,)` float32. `metrics` has the reference's names. `trace` maps
    `response_texts` and each stage's name to its value, in stage order.
    """

    tokens: TeacherTokens
    distillation_mask: Tensor
    metrics: dict[str, float]
    trace: dict[str, Any]


def needs_teacher_batch(loss_mode: str) -> bool:
    """Whether the loss uses a teacher batch: only for exactly `"sdpo"`.

    Source: `verl/trainer/ppo/ray_trainer.py` 672-796 at 0e6d5106, which returns nothing otherwise.
    """
    return loss_mode == "sdpo"


def used_feedback(
    demonstrations: Sequence[Demonstration | None],
    feedbacks: Sequence[str | None],
    *,
    environment_feedback_only_without_solution: bool,
) -> list[str | None]:
    """The feedback that enters a prompt: all that counts, or only where there is no demonstration.

    Args:
        demonstrations: from `demonstration`, B entries.
        feedbacks: from `feedback`, B entries.
        environment_feedback_only_without_solution: a demonstration displaces feedback.

    Returns:
        B entries, None where no feedback is used.

    Raises:
        ValueError: the arguments differ in length.

    Source: `verl/trainer/ppo/ray_trainer.py` 672-796 at 0e6d5106.
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

    Source: `verl/trainer/ppo/ray_trainer.py` 672-796 at 0e6d5106.
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

    Source: `verl/trainer/ppo/ray_trainer.py` 672-796 at 0e6d5106.
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


def reprompt_metrics(
    uids: Sequence[Any] | Tensor,
    succeeded: Sequence[bool],
    demonstrations: Sequence[Demonstration | None],
    feedbacks: Sequence[str | None],
    used: Sequence[str | None],
    mask: Tensor,
) -> dict[str, float]:
    """The reference's five metrics, under its names.

    Args:
        uids: group id per row.
        succeeded: from `successes`, B entries.
        demonstrations: from `demonstration`, B entries.
        feedbacks: from `feedback`, B entries.
        used: from `used_feedback`, B entries.
        mask: from `distillation_mask`.

    Returns:
        Fraction of groups with a success; fractions of rows with a demonstration (not: rows that
        succeeded), with feedback that counts, with used feedback, and with a teacher signal.

    Raises:
        ValueError: the arguments differ in length.

    Numerics: the last metric is a float32 mean, the others are float64 quotients.

    Source: `verl/trainer/ppo/ray_trainer.py` 672-796 at 0e6d5106.
    """
    groups = group_ids(uids)
    check_rows(uids=groups, succeeded=succeeded, demonstrations=demonstrations, feedbacks=feedbacks)
    solved = {uid for uid, success in zip(groups, succeeded, strict=True) if success}

    def share(entries: Sequence[Any]) -> float:
        return sum(entry is not None for entry in entries) / len(groups)

    return {
        "self_distillation/success_group_fraction": len(solved) / len(set(groups)),
        "self_distillation/success_sample_fraction": share(demonstrations),
        "self_distillation/feedback_available_fraction": share(feedbacks),
        "self_distillation/feedback_used_fraction": share(used),
        "self_distillation/reprompt_sample_fraction": mask.mean().item(),
    }


def teacher_batch(
    raw_prompt: Sequence[Sequence[Message]],
    responses: Tensor,
    response_mask: Tensor,
    token_level_rewards: Tensor,
    uids: Sequence[Any] | Tensor,
    tokenizer: Any,
    *,
    reward_extra_infos: Mapping[str, Any] | None = None,
    success_reward_threshold: float,
    dont_reprompt_on_self_success: bool,
    remove_thinking_from_demonstration: bool,
    include_environment_feedback: bool,
    environment_feedback_only_without_solution: bool,
    max_reprompt_len: int,
    reprompt_truncation: str,
    reprompt_template: str,
    solution_template: str,
    feedback_template: str,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> TeacherBatch:
    """All stages in order, for one batch.

    Args:
        raw_prompt: per row the messages the student was asked with.
        responses: `(B, R)` int64, right-padded.
        response_mask: `(B, R)`, 1 where a response token counts.
        token_level_rewards: `(B, R)`, usually float32.
        uids: group id per row.
        tokenizer: the student's; left as it was found.
        reward_extra_infos: what the environment returned per row; only `feedback` is read.
        success_reward_threshold: see `demonstration`.
        dont_reprompt_on_self_success: see `demonstration`.
        remove_thinking_from_demonstration: see `demonstration`.
        include_environment_feedback: see `feedback`.
        environment_feedback_only_without_solution: see `used_feedback`.
        max_reprompt_len: see `teacher_tokens`.
        reprompt_truncation: see `teacher_tokens`.
        reprompt_template: see `teacher_prompt`.
        solution_template: see `teacher_prompt`.
        feedback_template: see `teacher_prompt`.
        chat_template_kwargs: see `teacher_tokens`.

    Returns:
        Model inputs and row mask on the device of `responses`, metrics, and the trace.

    Raises:
        TypeError: feedback is not a list, or a prompt is not text.
        ValueError: a template cannot be filled, sizes disagree, an option is out of range, or a
            prompt is too long where that is refused.

    Source: `verl/trainer/ppo/ray_trainer.py` 672-796 at 0e6d5106.
    """
    only_without = environment_feedback_only_without_solution
    texts = response_texts(responses, tokenizer)
    feedbacks = feedback(
        (reward_extra_infos or {}).get("feedback", ()),
        len(texts),
        include_environment_feedback=include_environment_feedback,
    )
    demonstrations = demonstration(
        texts,
        token_level_rewards,
        uids,
        success_reward_threshold=success_reward_threshold,
        dont_reprompt_on_self_success=dont_reprompt_on_self_success,
        remove_thinking_from_demonstration=remove_thinking_from_demonstration,
    )
    messages = teacher_prompt(
        raw_prompt,
        demonstrations,
        feedbacks,
        environment_feedback_only_without_solution=only_without,
        reprompt_template=reprompt_template,
        solution_template=solution_template,
        feedback_template=feedback_template,
    )
    tokens = teacher_tokens(
        messages,
        responses,
        response_mask,
        tokenizer,
        max_reprompt_len=max_reprompt_len,
        reprompt_truncation=reprompt_truncation,
        chat_template_kwargs=chat_template_kwargs,
    )
    mask = distillation_mask(
        demonstrations, feedbacks, environment_feedback_only_without_solution=only_without
    )
    succeeded = successes(token_level_rewards, success_reward_threshold)
    used = used_feedback(
        demonstrations, feedbacks, environment_feedback_only_without_solution=only_without
    )
    metrics = reprompt_metrics(uids, succeeded, demonstrations, feedbacks, used, mask)
    trace = {
        "response_texts": texts,
        "feedback": feedbacks,
        "demonstration": demonstrations,
        "teacher_prompt": messages,
        "teacher_tokens": tokens,
        "distillation_mask": mask,
    }
    return TeacherBatch(tokens, mask.to(responses.device), metrics, trace)
