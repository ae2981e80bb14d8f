"""A tokenizer small enough to write down every expected id, and rows to feed it.

It renders a message as `r:text|`, with the first letter of the role, and the generation header as
`A:`; every character is one id, and id 0 is padding.
"""

from typing import Any

import torch

TEMPLATES = {
    "reprompt_template": "{prompt}{solution}{feedback}!",
    "solution_template": " S={successful_previous_attempt}",
    "feedback_template": " F={feedback_raw}",
}
CHOICE: dict[str, Any] = {
    "success_reward_threshold": 0.5,
    "dont_reprompt_on_self_success": True,
    "remove_thinking_from_demonstration": True,
}
SETTINGS: dict[str, Any] = {
    **CHOICE,
    **TEMPLATES,
    "include_environment_feedback": True,
    "environment_feedback_only_without_solution": True,
    "max_reprompt_len": 200,
    "reprompt_truncation": "right",
}


class CharTokenizer:
    """The little of a tokenizer that the stages use; refuses any change of its settings."""

    pad_token_id: int | None = 0

    def __setattr__(self, name: str, value: Any) -> None:
        raise AssertionError(f"the tokenizer's {name} was changed")

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return "".join(chr(i) for i in ids if i)

    def apply_chat_template(
        self, conversations: Any, enable_thinking: object, **_: Any
    ) -> dict[str, list[list[int]]]:
        header = "A:" if enable_thinking else "A:#"
        texts = ["".join(f"{m['role'][0]}:{m['content']}|" for m in c) for c in conversations]
        return {"input_ids": [[ord(char) for char in text + header] for text in texts]}


class NoPadding(CharTokenizer):
    pad_token_id = None


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def rewards(*scores: float) -> torch.Tensor:
    return torch.tensor(scores).unsqueeze(-1)


def ids(*texts: str, width: int) -> torch.Tensor:
    return torch.tensor([[ord(c) for c in text.ljust(width, "\0")] for text in texts])


def chars(row: torch.Tensor) -> str:
    return "".join(chr(i) for i in row.tolist()).replace("\0", "_")
