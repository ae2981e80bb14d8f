"""TRL's rollouts, scored, and under the names of an actor update.

Symbols: `B` rows of this process, `P` prompt width, `T` completion width, `W` processes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdpo.prompt.teacher_prompt import Message

TEACHER_KEYS = ("teacher_input_ids", "teacher_attention_mask", "teacher_position_ids")
OPTIONAL_KEYS = ("rollout_is_weights", "old_log_probs", "ref_log_prob")
TRLBatch = dict[str, Any]
"""Rows as TRL holds them: tensors and lists under its names."""


class Rollouts(NamedTuple):
    """What is known of this process's rows once they are scored.

    `prompts` has B conversations or texts; `rewards` is `(W*B,)`, over all processes in their
    order; `feedbacks` has B entries, text or None.
    """

    prompts: Sequence[Any]
    responses: Tensor
    response_mask: Tensor
    rewards: Tensor
    feedbacks: Sequence[Any]


def as_messages(prompt: str | Sequence[Message]) -> list[Message]:
    """A prompt as messages; content given as parts of text only becomes text."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    messages = []
    for message in prompt:
        content = message.get("content")
        if isinstance(content, list) and all(part.get("type") == "text" for part in content):
            content = "".join(part["text"] for part in content)
        messages.append({**message, "content": content})
    return messages


def response_mask_of(rollouts: TRLBatch) -> Tensor:
    """`(B, T)`: 1 where the student itself wrote a token; tool results do not count."""
    mask = rollouts["completion_mask"]
    return mask if rollouts.get("tool_mask") is None else mask * rollouts["tool_mask"]


def update_batch(rollouts: TRLBatch) -> dict[str, Tensor]:
    """TRL's rollouts, with the teacher's inputs, under the names of an actor update.

    Position ids count the attended tokens from 0, as the reference passes them.
    """
    attention_mask = torch.cat([rollouts["prompt_mask"], rollouts["completion_mask"]], dim=1)
    batch = {
        "input_ids": torch.cat([rollouts["prompt_ids"], rollouts["completion_ids"]], dim=1),
        "attention_mask": attention_mask,
        "position_ids": (attention_mask.cumsum(-1) - 1).clamp(min=0),
        "responses": rollouts["completion_ids"],
        "response_mask": response_mask_of(rollouts),
    }
    names = (*TEACHER_KEYS, "self_distillation_mask", *OPTIONAL_KEYS)
    return batch | {name: rollouts[name] for name in names if rollouts.get(name) is not None}
