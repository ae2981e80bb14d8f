"""The teacher's inputs: from a batch of attempts, rewards and feedback to token ids and a row mask.

    responses, rewards ─ demonstration ─┬─ teacher_prompt ─ teacher_tokens ─► ids, mask, positions
    environment ──────── feedback ──────┴─ distillation_mask ───────────────► rows with a signal

The teacher reads the messages and then scores the student's own response. Each stage is a pure
function of its arguments; `teacher_batch` puts them together, for audits and for the trainer. The
tokenizer is an argument, and its settings are left alone. Symbols: `B` rows of this process, `N`
rows of all processes, `R` response width, `L` width of the teacher prompt.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

from torch import Tensor

from sdpo.prompt.demonstrations import (
    Demonstration,
    check_rows,
    demonstration,
    feedback,
    group_ids,
    response_texts,
    successes,
)
from sdpo.prompt.teacher_prompt import Message, distillation_mask, teacher_prompt, used_feedback
from sdpo.prompt.teacher_tokens import TeacherTokens, Tokenizer, teacher_tokens
from sdpo.settings.stage_settings import PromptSettings


class Attempts(NamedTuple):
    """The attempts of this process, with the rewards and groups of all processes.

    `raw_prompt` has for each of B rows the messages that the student was asked with; `responses`
    `(B, R)` int64, right-padded; `response_mask` `(B, R)`, 1 where a response token counts;
    `token_level_rewards` `(N, R)`, usually float32; `uids` N group ids; `feedback_raw` the
    environment's value per row, empty for no feedback.
    """

    raw_prompt: Sequence[Sequence[Message]]
    responses: Tensor
    response_mask: Tensor
    token_level_rewards: Tensor
    uids: Sequence[Hashable] | Tensor
    feedback_raw: Sequence[object] = ()


class Processes(NamedTuple):
    """How several processes share their attempts; by default there is one.

    `gather` concatenates a list over all processes, in their order; `first_row` is where the rows
    of this process begin in such a list.
    """

    gather: Callable[[list[Any]], list[Any]] = list
    first_row: int = 0


_ALONE = Processes()


class PromptTrace(TypedDict):
    """The values of the stages for this process's rows, in the order of the stages."""

    response_texts: list[str]
    feedback: list[str | None]
    demonstration: list[Demonstration | None]
    teacher_prompt: list[list[Message]]
    teacher_tokens: TeacherTokens
    distillation_mask: Tensor


class TeacherBatch(NamedTuple):
    """Everything a training step needs from here, and how it came about.

    `distillation_mask` is `(B,)` float32. `metrics` has the reference's names, over all processes.
    """

    tokens: TeacherTokens
    distillation_mask: Tensor
    metrics: dict[str, float]
    trace: PromptTrace


def teacher_batch(
    attempts: Attempts,
    tokenizer: Tokenizer,
    settings: PromptSettings,
    *,
    chat_template_kwargs: Mapping[str, object] | None = None,
    processes: Processes = _ALONE,
) -> TeacherBatch:
    """Run all stages in order, for one batch.

    Args:
        attempts: the rows of this process, and what is known of all rows.
        tokenizer: the student's; left as it was found.
        settings: under verl's names, as the stages take them.
        chat_template_kwargs: see `teacher_tokens`.
        processes: where the rows of other processes come from; demonstrations are chosen from all.

    Returns:
        Model inputs and row mask on the device of the responses, metrics, and the trace.

    Raises:
        TypeError: feedback is not a list, or a prompt is not text.
        ValueError: a template cannot be filled, sizes disagree, an option is out of range, or a
            prompt is too long where that is refused.

    Source: `verl/trainer/ppo/ray_trainer.py` 672-796 at 0e6d5106.
    """
    texts = response_texts(attempts.responses, tokenizer)
    feedbacks = feedback(
        attempts.feedback_raw,
        len(texts),
        include_environment_feedback=settings.include_environment_feedback,
    )
    shown, mask, metrics = _over_all_rows(
        processes.gather(texts), processes.gather(feedbacks), attempts, settings
    )
    here = slice(processes.first_row, processes.first_row + len(texts))
    shown, mask = shown[here], mask[here]
    messages = _messages(attempts.raw_prompt, shown, feedbacks, settings)
    tokens = teacher_tokens(
        messages,
        attempts.responses,
        attempts.response_mask,
        tokenizer,
        max_reprompt_len=settings.max_reprompt_len,
        reprompt_truncation=settings.reprompt_truncation,
        chat_template_kwargs=chat_template_kwargs,
    )
    trace: PromptTrace = {
        "response_texts": texts,
        "feedback": feedbacks,
        "demonstration": shown,
        "teacher_prompt": messages,
        "teacher_tokens": tokens,
        "distillation_mask": mask,
    }
    return TeacherBatch(tokens, mask.to(attempts.responses.device), metrics, trace)


def _over_all_rows(
    texts: list[str],
    feedbacks: list[str | None],
    attempts: Attempts,
    settings: PromptSettings,
) -> tuple[list[Demonstration | None], Tensor, dict[str, float]]:
    """Choose the demonstrations of all processes' rows: these, the mask `(N,)`, the metrics."""
    rewards, uids = attempts.token_level_rewards, attempts.uids
    shown = demonstration(
        texts,
        rewards,
        uids,
        success_reward_threshold=settings.success_reward_threshold,
        dont_reprompt_on_self_success=settings.dont_reprompt_on_self_success,
        remove_thinking_from_demonstration=settings.remove_thinking_from_demonstration,
    )
    only_without = settings.environment_feedback_only_without_solution
    used = used_feedback(shown, feedbacks, environment_feedback_only_without_solution=only_without)
    mask = distillation_mask(
        shown, feedbacks, environment_feedback_only_without_solution=only_without
    )
    succeeded = successes(rewards, settings.success_reward_threshold)
    return shown, mask, reprompt_metrics(uids, succeeded, shown, feedbacks, used, mask)


def _messages(
    raw_prompt: Sequence[Sequence[Message]],
    demonstrations: Sequence[Demonstration | None],
    feedbacks: Sequence[str | None],
    settings: PromptSettings,
) -> list[list[Message]]:
    """Call the stage `teacher_prompt` with its settings."""
    only_without = settings.environment_feedback_only_without_solution
    return teacher_prompt(
        raw_prompt,
        demonstrations,
        feedbacks,
        environment_feedback_only_without_solution=only_without,
        reprompt_template=settings.reprompt_template,
        solution_template=settings.solution_template,
        feedback_template=settings.feedback_template,
    )


def reprompt_metrics(
    uids: Sequence[Hashable] | Tensor,
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

    Source: `verl/trainer/ppo/ray_trainer.py` 780-790 at 0e6d5106.
    """
    groups = group_ids(uids)
    check_rows(uids=groups, succeeded=succeeded, demonstrations=demonstrations, feedbacks=feedbacks)
    solved = {uid for uid, success in zip(groups, succeeded, strict=True) if success}

    def share(entries: Sequence[object]) -> float:
        return sum(entry is not None for entry in entries) / len(groups)

    return {
        "self_distillation/success_group_fraction": len(solved) / len(set(groups)),
        "self_distillation/success_sample_fraction": share(demonstrations),
        "self_distillation/feedback_available_fraction": share(feedbacks),
        "self_distillation/feedback_used_fraction": share(used),
        "self_distillation/reprompt_sample_fraction": mask.mean().item(),
    }
