"""The reference's teacher batch: feedback, demonstration, messages, token ids, mask, metrics.

A transcription of the verl fork's teacher-prompt building, written from its specification and
checked exactly against recorded values. It keeps the order of operations, the quirks and the
classes of the raised exceptions of the original, also where they look wrong. `PROVENANCE.toml`
names the file and lines behind each function. Nothing here is meant to be improved: the readable
implementation is `sdpo/prompt/teacher_prompt.py`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypedDict

import torch
from torch import Tensor

Message = dict[str, Any]
Settings = Mapping[str, Any]
RewardExtraInfos = Mapping[str, Sequence[object]]
"""What reward functions say beside the rewards, by column."""

THINKING = re.compile(r"<think>.*?</think>\s*", flags=re.DOTALL)


class Tokenizer(Protocol):
    """What is asked of a tokenizer."""

    padding_side: str
    truncation_side: str

    def decode(self, ids: Tensor, /, *, skip_special_tokens: bool) -> str:
        """Text of some ids."""
        ...

    def apply_chat_template(
        self, conversations: Sequence[Sequence[Message]], /, **options: Any
    ) -> Mapping[str, Tensor]:
        """Ids and attention mask of several conversations."""
        ...


class Demonstration(NamedTuple):
    """The row whose response is shown to the teacher, and its text after clean-up."""

    row: int
    text: str


class PromptTrace(TypedDict):
    """The values that a teacher batch went through, by stage; one per row but for the tensors."""

    response_texts: list[str]
    feedback: list[str | None]
    demonstration: list[Demonstration | None]
    teacher_prompt: list[list[Message]]
    teacher_tokens: dict[str, Tensor]
    distillation_mask: Tensor


class TeacherBatch(NamedTuple):
    """What the reference adds to the batch, its metrics, and the values it went through.

    `tensors` has `teacher_input_ids`, `teacher_attention_mask` and `teacher_position_ids`
    `(B, L+R)` int64 and `self_distillation_mask` `(B,)` float32; `trace` has one value per stage.
    """

    tensors: dict[str, Tensor]
    metrics: dict[str, float]
    trace: PromptTrace


def set_tokenizer_sides(tokenizer: Tokenizer, settings: Settings) -> None:
    """What the trainer does once at start-up, before any batch: it changes the tokenizer for good.

    Quirk: a missing `reprompt_truncation` means `"error"`, which is no direction the tokenizer
    knows, so that every later truncating call raises ValueError.
    """
    tokenizer.padding_side = "left"
    tokenizer.truncation_side = settings.get("reprompt_truncation", "error")


def decode_responses(responses: Tensor, tokenizer: Tokenizer) -> list[str]:
    """Text of each row of `(B, R)` ids. Quirk: all ids, also those outside the response mask."""
    return [tokenizer.decode(row, skip_special_tokens=True) for row in responses]


def collect_feedback(
    reward_extra_infos: RewardExtraInfos | None, batch_size: int, settings: Settings
) -> list[str | None]:
    """The feedback that counts, per row.

    Quirk: the truth value of an entry is taken before its type is looked at, so an array of more
    than one element raises ValueError; None in place of the list raises TypeError.
    """
    collected: list[str | None] = [None] * batch_size
    if not settings["include_environment_feedback"]:
        return collected
    if not reward_extra_infos or "feedback" not in reward_extra_infos:
        return collected
    values = reward_extra_infos["feedback"]
    for row in range(batch_size):
        if row < len(values):
            value = values[row]
            if value and isinstance(value, str) and value.strip():
                collected[row] = value
    return collected


def successes_by_uid(
    token_level_rewards: Tensor, uids: Sequence[Any], threshold: float
) -> dict[Any, list[int]]:
    """Successful rows of each group in batch order; every group has an entry.

    Numerics: scores are summed in float32 and the threshold is rounded to float32.
    """
    scores = token_level_rewards.sum(dim=-1)
    succeeded = (scores >= threshold).tolist()
    rows_of: dict[Any, list[int]] = {}
    for row, uid in enumerate(uids):
        rows = rows_of.setdefault(uid, [])
        if succeeded[row]:
            rows.append(row)
    return rows_of


def remove_thinking(text: str) -> str:
    """Delete every shortest closed thinking span with the white space after it."""
    return THINKING.sub("", text)


def choose_demonstration(
    row: int, successes: Sequence[int], response_texts: Sequence[str], settings: Settings
) -> Demonstration | None:
    """The first success of the row's group, or the first other one.

    Quirk: a text that is empty after the removal is still a demonstration.
    """
    if settings["dont_reprompt_on_self_success"]:
        successes = [peer for peer in successes if peer != row]
    if not successes:
        return None
    text = response_texts[successes[0]]
    if settings["remove_thinking_from_demonstration"]:
        text = remove_thinking(text)
    return Demonstration(successes[0], text)


def uses_feedback(
    feedback: str | None, demonstration: Demonstration | None, settings: Settings
) -> bool:
    """Whether a row's feedback enters its prompt. Quirk: its own success does not matter."""
    if feedback is None:
        return False
    return not settings["environment_feedback_only_without_solution"] or demonstration is None


def build_messages(
    messages: Sequence[Message],
    demonstration: Demonstration | None,
    feedback: str | None,
    settings: Settings,
) -> list[Message]:
    """The teacher's messages of one row, `feedback` being what is used of it.

    Quirks: the last message becomes a user message whatever its role was, also where its text does
    not change; a template is filled, and so found to be wrong, only where a row needs it.
    """
    prompt = messages[-1]["content"]
    solution_section = ""
    if demonstration is not None:
        solution_section = settings["solution_template"].format(
            successful_previous_attempt=demonstration.text
        )
    feedback_section = ""
    if feedback is not None:
        feedback_section = settings["feedback_template"].format(feedback_raw=feedback)
    text = prompt
    if demonstration is not None or feedback is not None:
        text = settings["reprompt_template"].format(
            prompt=prompt, solution=solution_section, feedback=feedback_section
        )
    return [*messages[:-1], {"role": "user", "content": text}]


def encode_prompts(
    messages: Sequence[Sequence[Message]],
    tokenizer: Tokenizer,
    settings: Settings,
    apply_chat_template_kwargs: Mapping[str, object] | None,
) -> tuple[Tensor, Tensor]:
    """Ids and attention mask `(B, L)` of all prompts, from one batched call.

    Quirks: of the chat template's arguments only `enable_thinking` is passed on; truncation cuts
    the complete rendering, on the side that the tokenizer was set to at start-up.
    """
    encoded = tokenizer.apply_chat_template(
        messages,
        tokenize=True,
        return_tensors="pt",
        return_dict=True,
        continue_final_message=False,
        add_generation_prompt=True,
        enable_thinking=(apply_chat_template_kwargs or {}).get("enable_thinking", True),
        max_length=settings["max_reprompt_len"],
        padding=True,
        truncation=True,
    )
    return encoded["input_ids"], encoded["attention_mask"]


def append_responses(
    prompt_ids: Tensor, prompt_mask: Tensor, responses: Tensor, response_mask: Tensor
) -> dict[str, Tensor]:
    """Prompt and response side by side, `(B, L+R)`.

    Quirk: the response part of the attention mask is the response mask, so tokens that it leaves
    out inside a response are hidden from the teacher, and positions close up over them.
    """
    device = responses.device
    attention_mask = torch.cat([prompt_mask.to(device), response_mask], dim=1)
    return {
        "teacher_input_ids": torch.cat([prompt_ids.to(device), responses], dim=1),
        "teacher_attention_mask": attention_mask,
        "teacher_position_ids": torch.clamp(torch.cumsum(attention_mask, dim=1) - 1, min=0),
    }


def batch_metrics(
    successes: Mapping[Any, Sequence[int]],
    demonstrations: Sequence[Demonstration | None],
    feedback: Sequence[str | None],
    feedback_used: Sequence[bool],
    mask: Tensor,
) -> dict[str, float]:
    """Fractions of groups and rows. Numerics: only the last one is a float32 mean."""
    batch_size = len(demonstrations)
    with_demonstration = sum(item is not None for item in demonstrations)
    available = sum(item is not None for item in feedback)
    return {
        "self_distillation/success_group_fraction": (
            sum(len(rows) > 0 for rows in successes.values()) / len(successes)
        ),
        "self_distillation/success_sample_fraction": with_demonstration / batch_size,
        "self_distillation/feedback_available_fraction": available / batch_size,
        "self_distillation/feedback_used_fraction": sum(feedback_used) / batch_size,
        "self_distillation/reprompt_sample_fraction": mask.mean().item(),
    }


def build_teacher_batch(
    responses: Tensor,
    response_mask: Tensor,
    token_level_rewards: Tensor,
    raw_prompt: Sequence[Sequence[Message]],
    uids: Sequence[Any],
    reward_extra_infos: RewardExtraInfos | None,
    tokenizer: Tokenizer,
    *,
    loss_mode: str,
    self_distillation: Settings,
    apply_chat_template_kwargs: Mapping[str, object] | None = None,
) -> TeacherBatch | None:
    """Build the teacher's inputs for a batch; None unless `loss_mode` is exactly `"sdpo"`.

    The tokenizer must have been through `set_tokenizer_sides`. `responses` and `response_mask` are
    `(B, R)` int64, right-padded; `token_level_rewards` is `(B, R)` float32; `self_distillation`
    holds the ten settings.
    """
    if loss_mode != "sdpo":
        return None
    settings, batch_size = self_distillation, len(responses)
    texts = decode_responses(responses, tokenizer)
    if not all(len(conversation) for conversation in raw_prompt):
        # before the feedback is looked at, which may be wrong as well
        raise IndexError("a conversation without any message has no prompt")
    feedback = collect_feedback(reward_extra_infos, batch_size, settings)
    successes = successes_by_uid(token_level_rewards, uids, settings["success_reward_threshold"])
    demonstrations = [
        choose_demonstration(row, successes[uids[row]], texts, settings)
        for row in range(batch_size)
    ]
    used = [uses_feedback(*pair, settings) for pair in zip(feedback, demonstrations, strict=True)]
    messages = [
        build_messages(
            raw_prompt[row], demonstrations[row], feedback[row] if used[row] else None, settings
        )
        for row in range(batch_size)
    ]
    prompt_ids, prompt_mask = encode_prompts(
        messages, tokenizer, settings, apply_chat_template_kwargs
    )
    tensors = append_responses(prompt_ids, prompt_mask, responses, response_mask)
    mask = torch.tensor(
        [demonstrations[row] is not None or used[row] for row in range(batch_size)],
        dtype=torch.float32,
        device=responses.device,
    )
    trace: PromptTrace = {
        "response_texts": texts,
        "feedback": feedback,
        "demonstration": demonstrations,
        "teacher_prompt": messages,
        "teacher_tokens": dict(tensors),
        "distillation_mask": mask,
    }
    metrics = batch_metrics(successes, demonstrations, feedback, used, mask)
    return TeacherBatch({**tensors, "self_distillation_mask": mask}, metrics, trace)
