"""Random teacher prompts: attempts, feedback, conversations, templates and all their settings.

Some are wrong on purpose (templates, feedback that is no list): both sides must refuse them alike.
Not varied: the tokenizer and its chat template, and contents that are no text.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from sdpo.parity.live_fork.settings import Settings
from sdpo.parity.live_fork.teacher_prompts import Attempts, Messages, live_prompt
from sdpo.parity.random_cases.chance import Chance
from sdpo.reference.teacher_prompt import (
    RewardExtraInfos,
    Tokenizer,
    build_teacher_batch,
    set_tokenizer_sides,
)

Values = dict[str, object]

TEXTS = ("", " ", "a", "<think>b</think> c", "<think>open", "<think>x\ny</think>\n\n ok", "{x}")
FURTHER_TEXTS = ("é\n", "wrong: 3 != 4", "</think>", "\u00a0", "日本", "%s {0}", "<|im_end|>")
PADDING = 421
"""The token that the recorded tokenizer pads with."""

FLAGS = (
    "dont_reprompt_on_self_success",
    "remove_thinking_from_demonstration",
    "include_environment_feedback",
    "environment_feedback_only_without_solution",
)
TEMPLATES = {
    "reprompt_template": (
        "{prompt}{solution}{feedback}\n\nCorrectly solve the original question.",
        "{solution} {prompt}",
    ),
    "solution_template": ("\nCorrect solution:\n\n{successful_previous_attempt}", "[{{S}}]"),
    "feedback_template": ("\nFeedback:\n\n{feedback_raw}", "[F {feedback_raw!r:.5}]"),
}
WRONG_TEMPLATES = ("{missing}", "{0}", "{", "}")
UNUSUAL_TEMPLATE_ARGUMENTS = (None, {}, {"enable_thinking": True}, {"other": 1})


class WritingTokenizer(Tokenizer, Protocol):
    """A tokenizer that also makes the tokens of attempts."""

    def __len__(self) -> int:
        """Count the tokens of the vocabulary."""
        ...

    def encode(self, text: str, /, *, add_special_tokens: bool) -> list[int]:
        """Split a text into ids."""
        ...


@dataclass(frozen=True)
class RandomPrompt:
    """A batch of attempts with settings; `tokenizer` is set anew by each side."""

    attempts: Attempts = field(repr=False)
    settings: Settings
    loss_mode: str
    chat_template_kwargs: Settings | None
    tokenizer: WritingTokenizer = field(repr=False)

    def described(self) -> str:
        """Settings and attempts, on one line."""
        return f"{self!r} {self.attempts!r}"

    def fork(self) -> Values:
        """What the fork's trainer makes of it; empty where it builds no prompt."""
        prompt = live_prompt(
            self.attempts,
            self.settings,
            self.tokenizer,
            loss_mode=self.loss_mode,
            chat_template_kwargs=self.chat_template_kwargs,
        )
        if prompt is None:
            return {}
        return {
            **prompt.tensors,
            **prompt.metrics,
            "response_texts": prompt.response_texts,
            "feedback": prompt.feedback,
            "demonstration": prompt.demonstrations,
            "teacher_prompt": prompt.messages,
        }

    def transcribed(self) -> Values:
        """What the transcription makes of it, under the same names."""
        given = self.attempts
        set_tokenizer_sides(self.tokenizer, self.settings)
        built = build_teacher_batch(
            given.responses,
            given.response_mask,
            given.token_level_rewards,
            given.raw_prompt,
            given.uids,
            given.reward_extra_infos,
            self.tokenizer,
            loss_mode=self.loss_mode,
            self_distillation=self.settings,
            apply_chat_template_kwargs=self.chat_template_kwargs,
        )
        if built is None:
            return {}
        texts = ("response_texts", "feedback", "teacher_prompt")
        chosen = [shown and tuple(shown) for shown in built.trace["demonstration"]]
        values: Values = {**built.tensors, **built.metrics, "demonstration": chosen}
        return values | {name: built.trace[name] for name in texts}


def random_prompt(seed: int, tokenizer: WritingTokenizer) -> RandomPrompt:
    """The teacher prompts of a seed."""
    chance = Chance("reprompt", seed)
    attempts = random_attempts(chance, tokenizer)
    usual = {"enable_thinking": False}
    return RandomPrompt(
        attempts,
        random_settings(chance),
        "vanilla" if chance.happens(0.03) else "sdpo",
        chance.choice([usual, usual, *UNUSUAL_TEMPLATE_ARGUMENTS]),
        tokenizer,
    )


def random_settings(chance: Chance) -> dict[str, str | bool | int | float]:
    """All ten settings of the prompt."""
    templates = {name: chance.choice(usual) for name, usual in TEMPLATES.items()}
    if chance.happens(0.1):
        templates[chance.choice(list(templates))] = chance.choice(WRONG_TEMPLATES)
    return {
        **{name: chance.happens(0.5) for name in FLAGS},
        **templates,
        "success_reward_threshold": chance.choice([0.1, 0.5, 0.7, 0.9, 1.0, -1.0]),
        "max_reprompt_len": chance.choice([1, 5, 20, 60, 10240, 10240]),
        "reprompt_truncation": chance.choice(["left"] * 4 + ["right"] * 8 + ["error"]),
    }


def random_attempts(chance: Chance, tokenizer: WritingTokenizer) -> Attempts:
    """Responses of texts or of any tokens, with rewards on all of their tokens."""
    rows, width = chance.between(1, 7), chance.between(1, 24)
    responses = chance.integers(0, len(tokenizer), rows, width)
    for row in range(rows):
        if chance.happens(0.6):
            ids = tokenizer.encode(random_text(chance), add_special_tokens=False)[:width]
            responses[row] = PADDING
            responses[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
    return Attempts(
        [random_messages(chance) for _ in range(rows)],
        chance.choices(["u", "v", 3], rows),
        responses,
        chance.mask(rows, width).long(),
        random_rewards(chance, rows, width),
        random_infos(chance, rows),
    )


def random_rewards(chance: Chance, rows: int, width: int) -> Tensor:
    """Rewards at the last token, or over all of them; a few are not finite."""
    if chance.happens(0.3):
        return chance.normal(rows, width)
    rewards = torch.zeros(rows, width)
    scores = [0.0, 0.1, 0.5, 0.7, 0.9, 1.0, 1.0, float("nan"), float("inf")]
    rewards[:, -1] = torch.tensor(chance.choices(scores, rows))
    return rewards


def random_infos(chance: Chance, rows: int) -> RewardExtraInfos | None:
    """What the reward function returned beside the score: feedback, too much, too little, none."""
    entries = [None, 1, "", " \n", ["x"], random_text(chance), random_text(chance), "wrong: 3 != 4"]
    feedback = chance.choices(entries, rows)
    no_list: Any = None
    lists = [feedback, feedback, feedback, [*feedback, "more"], feedback[:-1], no_list]
    name = "other" if chance.happens(0.1) else "feedback"
    return None if chance.happens(0.1) else {name: chance.choice(lists)}


def random_messages(chance: Chance) -> Messages:
    """A conversation of one to three messages, of any roles; now and then none."""
    count = 0 if chance.happens(0.004) else chance.between(1, 3)
    roles = chance.choices(["system", "user", "user", "assistant"], count)
    return [{"role": role, "content": random_text(chance)} for role in roles]


def random_text(chance: Chance) -> str:
    """A few pieces of text."""
    return " ".join(chance.choices(TEXTS + FURTHER_TEXTS, chance.between(0, 4)))
