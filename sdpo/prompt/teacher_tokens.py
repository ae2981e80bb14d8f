"""Stage `teacher_tokens`: messages and responses to ids, attention mask and positions.

Symbols: `B` rows, `R` response width, `L` width of the longest teacher prompt.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sdpo.prompt.demonstrations import check_rows, warn
from sdpo.prompt.teacher_prompt import Message

_TRUNCATION_MODES = ("right", "left", "error")
_LOST_BY_TRUNCATION = {
    "right": "the end of the user text, the end-of-turn token and the assistant header",
    "left": "the system prompt and the beginning of the question",
}


class Tokenizer(Protocol):
    """The little of a tokenizer that the teacher prompt needs."""

    @property
    def pad_token_id(self) -> int | None:
        """Id that fills short prompts."""

    def decode(self, ids: list[int], /, *, skip_special_tokens: bool) -> str:
        """Text of some ids."""
        ...

    def apply_chat_template(
        self,
        conversations: list[list[Message]],
        /,
        *,
        tokenize: bool,
        return_dict: bool,
        add_generation_prompt: bool,
        enable_thinking: object,
        tokenizer_kwargs: Mapping[str, object],
    ) -> Any:
        """A mapping with the ids of each prompt as `input_ids`."""


class TeacherTokens(NamedTuple):
    """The teacher's model inputs, `(B, L+R)` int64 each: left-padded prompt, then the response."""

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor


def teacher_tokens(
    messages: Sequence[Sequence[Message]],
    responses: Tensor,
    response_mask: Tensor,
    tokenizer: Tokenizer,
    *,
    max_reprompt_len: int,
    reprompt_truncation: str,
    chat_template_kwargs: Mapping[str, object] | None,
) -> TeacherTokens:
    """Stage `teacher_tokens`: what the teacher model is given.

    The prompts are rendered with the generation header, cut to `max_reprompt_len`, left-padded to
    the longest, and followed by the responses. Positions count the attended tokens from 0. Tokens
    outside the response mask are hidden from the teacher, and positions close up over them.

    Args:
        messages: from `teacher_prompt`, B lists.
        responses: `(B, R)` int64, right-padded.
        response_mask: `(B, R)`, 1 where a response token counts; any dtype.
        tokenizer: has `apply_chat_template` and `pad_token_id`; its padding and truncation sides
            are neither read nor changed.
        max_reprompt_len: most tokens of a prompt, header included; at least 1.
        reprompt_truncation: which side of a longer prompt is cut, `"right"` or `"left"`, or
            `"error"` to refuse it.
        chat_template_kwargs: only `enable_thinking` (default True) reaches the template.

    Returns:
        Three `(B, L+R)` int64 tensors on the device of `responses`.

    Raises:
        ValueError: a prompt is too long and `reprompt_truncation` is `"error"`; an option is out of
            range; the tokenizer has no padding token; shapes or row numbers disagree.

    Warns:
        RepromptWarning: a prompt was cut, or `chat_template_kwargs` has keys that are not passed
            on.

    Source: `verl/trainer/ppo/ray_trainer.py` 748-764 at 0e6d5106.
    """
    _check_options(tokenizer, max_reprompt_len, reprompt_truncation)
    _check_responses(messages, responses, response_mask)
    prompts = prompt_ids(messages, tokenizer, chat_template_kwargs)
    prompts = cut_prompts(prompts, max_reprompt_len, reprompt_truncation)
    width = max(len(ids) for ids in prompts)
    padding = [width - len(ids) for ids in prompts]
    pad_id = tokenizer.pad_token_id
    ids = [[pad_id] * n + list(row) for n, row in zip(padding, prompts, strict=True)]
    mask = [[0] * n + [1] * (width - n) for n in padding]
    device = responses.device
    input_ids = torch.tensor(ids, dtype=torch.int64, device=device)
    attention_mask = torch.tensor(mask, dtype=torch.int64, device=device)
    attention_mask = torch.cat([attention_mask, response_mask.to(device, torch.int64)], dim=-1)
    return TeacherTokens(
        input_ids=torch.cat([input_ids, responses.to(torch.int64)], dim=-1),
        attention_mask=attention_mask,
        position_ids=(attention_mask.cumsum(-1) - 1).clamp(min=0),
    )


def prompt_ids(
    messages: Sequence[Sequence[Message]],
    tokenizer: Tokenizer,
    chat_template_kwargs: Mapping[str, object] | None,
) -> list[list[int]]:
    """Render each prompt with the generation header to ids, neither cut nor padded.

    Cutting and padding the lists here instead of in the tokenizer needs no change of its sides,
    gives the same ids, and knows how long a prompt really is.

    Args:
        messages: B lists of messages.
        tokenizer: has `apply_chat_template`.
        chat_template_kwargs: only `enable_thinking` (default True) reaches the template.

    Returns:
        B lists of ids.

    Warns:
        RepromptWarning: there are other keys.

    Source: `verl/trainer/ppo/ray_trainer.py` 749-761 at 0e6d5106.
    """
    arguments = dict(chat_template_kwargs or {})
    enable_thinking = arguments.pop("enable_thinking", True)
    if arguments:
        warn(
            f"chat_template_kwargs {sorted(arguments)} do not reach the teacher's prompt, only "
            "'enable_thinking' does; a student prompt that uses them differs from the teacher's"
        )
    encoded = tokenizer.apply_chat_template(
        [list(conversation) for conversation in messages],
        tokenize=True,
        return_dict=True,
        add_generation_prompt=True,
        enable_thinking=enable_thinking,
        # A prompt longer than the model's limit is cut below, so the tokenizer need not complain.
        tokenizer_kwargs={"verbose": False},
    )
    return encoded["input_ids"]


def cut_prompts(
    prompts: Sequence[list[int]], max_reprompt_len: int, reprompt_truncation: str
) -> list[list[int]]:
    """Shorten prompts to `max_reprompt_len` ids.

    Args:
        prompts: B lists of ids.
        max_reprompt_len: most ids to keep.
        reprompt_truncation: the side to cut, `"right"` or `"left"`, or `"error"`.

    Returns:
        B lists of ids.

    Raises:
        ValueError: a prompt is longer and `reprompt_truncation` is `"error"`.

    Warns:
        RepromptWarning: a prompt was cut, with what such a cut removes.

    Source: `verl/trainer/ppo/ray_trainer.py` 749-761 at 0e6d5106.
    """
    too_long = [row for row, ids in enumerate(prompts) if len(ids) > max_reprompt_len]
    if not too_long:
        return list(prompts)
    if reprompt_truncation == "error":
        row = too_long[0]
        raise ValueError(
            f"the teacher prompt of row {row} has {len(prompts[row])} tokens, more than "
            f"max_reprompt_len={max_reprompt_len} (rows too long: {len(too_long)}); raise the "
            "limit, or set reprompt_truncation to 'right' or 'left' to cut such prompts"
        )
    warn(
        f"teacher prompts longer than max_reprompt_len={max_reprompt_len} were cut on the "
        f"{reprompt_truncation}, which removes {_LOST_BY_TRUNCATION[reprompt_truncation]} first"
    )
    if reprompt_truncation == "left":
        return [ids[-max_reprompt_len:] for ids in prompts]
    return [ids[:max_reprompt_len] for ids in prompts]


def _check_options(tokenizer: Tokenizer, max_reprompt_len: int, reprompt_truncation: str) -> None:
    if reprompt_truncation not in _TRUNCATION_MODES:
        raise ValueError(
            f"reprompt_truncation is {reprompt_truncation!r}, not one of {_TRUNCATION_MODES}"
        )
    if max_reprompt_len < 1:
        raise ValueError(f"max_reprompt_len is {max_reprompt_len}, it must be at least 1")
    if tokenizer.pad_token_id is None:
        raise ValueError(
            "the tokenizer has no padding token, which a batch of teacher prompts needs; "
            "for instance set tokenizer.pad_token = tokenizer.eos_token"
        )


def _check_responses(messages: Sequence[object], responses: Tensor, response_mask: Tensor) -> None:
    if responses.dim() != 2 or responses.shape != response_mask.shape:
        raise ValueError(
            f"responses and response_mask must both be (B, R), they are {tuple(responses.shape)} "
            f"and {tuple(response_mask.shape)}"
        )
    check_rows(messages=messages, responses=responses.tolist())
    if not messages:
        raise ValueError("the batch is empty; skip the step instead")
