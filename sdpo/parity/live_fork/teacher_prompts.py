"""The teacher's prompt of a batch of attempts, by the fork's trainer itself."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from sdpo.parity.live_fork.modules import RAY_TRAINER, live_function, live_module
from sdpo.parity.live_fork.settings import Settings
from sdpo.reference.teacher_prompt import RewardExtraInfos

TOKEN_NAMES = ("teacher_input_ids", "teacher_attention_mask", "teacher_position_ids")

Messages = list[dict[str, object]]
Demonstration = tuple[int, str] | None


@dataclass(frozen=True)
class Attempts:
    """A batch of attempts.

    Attributes:
        raw_prompt: per row the messages.
        uids: per row its group.
        responses, response_mask, token_level_rewards: `(B, R)`.
        reward_extra_infos: what the reward function returned besides, `feedback` among it.
    """

    raw_prompt: Sequence[Messages]
    uids: Sequence[object]
    responses: Tensor
    response_mask: Tensor
    token_level_rewards: Tensor
    reward_extra_infos: RewardExtraInfos | None


@dataclass
class LivePrompt:
    """What the fork made of a batch of attempts.

    Attributes:
        response_texts: decoded responses.
        feedback: per row the feedback that counts, or None.
        demonstrations: per row the peer that was taken and its text after clean-up, or None.
        messages: per row what was rendered.
        template_call: the keyword arguments of `apply_chat_template`.
        tensors: `teacher_input_ids`, `teacher_attention_mask`, `teacher_position_ids` and
            `self_distillation_mask`.
        metrics: what the fork logs.
    """

    response_texts: list[str] = field(default_factory=list)
    feedback: list[object] = field(default_factory=list)
    demonstrations: list[Demonstration] = field(default_factory=list)
    messages: list[Messages] = field(default_factory=list)
    template_call: dict[str, object] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


class WatchedTokenizer:
    """Passes everything on to a tokenizer and notes what is decoded and rendered."""

    _tokenizer: Any
    _prompt: LivePrompt

    def __init__(self, tokenizer: object, prompt: LivePrompt) -> None:
        object.__setattr__(self, "_tokenizer", tokenizer)
        object.__setattr__(self, "_prompt", prompt)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._tokenizer, name, value)

    def decode(self, *arguments: object, **further: object) -> str:
        """Decode one response."""
        text = self._tokenizer.decode(*arguments, **further)
        self._prompt.response_texts.append(text)
        return text

    def apply_chat_template(self, messages: Sequence[Messages], **further: object) -> object:
        """Render the prompts of all rows."""
        self._prompt.messages = [[dict(message) for message in row] for row in messages]
        self._prompt.template_call = dict(further)
        return self._tokenizer.apply_chat_template(messages, **further)


class NotedList(list[str]):
    """A list that notes which entry was taken last."""

    taken: int | None = None

    def __getitem__(self, index: Any) -> Any:
        """The entry, noted."""
        self.taken = index
        return super().__getitem__(index)


def live_prompt(
    attempts: Attempts,
    distillation: Settings,
    tokenizer: object,
    *,
    loss_mode: str = "sdpo",
    chat_template_kwargs: Settings | None = None,
) -> LivePrompt | None:
    """The teacher's prompt by `RayPPOTrainer._maybe_build_self_distillation_batch`.

    The trainer's own `__init__` is called: it sets the tokenizer's sides, and then refuses to go on
    without workers, which is expected.

    Args:
        attempts: the batch.
        distillation: settings of the prompt.
        tokenizer: its sides are set by the fork.
        loss_mode: the fork builds a prompt for `sdpo` alone.
        chat_template_kwargs: of the data's settings.

    Returns:
        None where the fork builds no prompt.
    """
    prompt = LivePrompt()
    trainer = _trainer(
        distillation, WatchedTokenizer(tokenizer, prompt), loss_mode, chat_template_kwargs
    )
    collect, choose = trainer._collect_feedback, trainer._get_solution

    def collected(*arguments: Any, **further: Any) -> list[object]:
        prompt.feedback = collect(*arguments, **further)
        return list(prompt.feedback)

    def chosen(
        index: int, by_uid: object, uids: object, texts: list[str], *further: Any
    ) -> str | None:
        noted = NotedList(texts)
        text = choose(index, by_uid, uids, noted, *further)
        taken = None if text is None or noted.taken is None else (noted.taken, text)
        prompt.demonstrations.append(taken)
        return text

    trainer._collect_feedback, trainer._get_solution = collected, chosen
    built = trainer._maybe_build_self_distillation_batch(
        _batch(attempts),
        attempts.token_level_rewards.clone(),
        attempts.reward_extra_infos,
    )
    if built is None:
        return None
    data, prompt.metrics = built
    prompt.tensors = {name: data.batch[name] for name in (*TOKEN_NAMES, "self_distillation_mask")}
    return prompt


def _trainer(
    distillation: Settings,
    tokenizer: WatchedTokenizer,
    loss_mode: str,
    chat_template_kwargs: Settings | None,
) -> Any:
    """The fork's trainer as far as its `__init__` gets without workers."""
    actor = {"policy_loss": {"loss_mode": loss_mode}, "self_distillation": dict(distillation)}
    config = live_module("omegaconf").OmegaConf.create(
        {
            "actor_rollout_ref": {"hybrid_engine": False, "actor": actor},
            "data": {"apply_chat_template_kwargs": chat_template_kwargs},
        }
    )
    kind: Any = live_function(RAY_TRAINER, "RayPPOTrainer")
    trainer = kind.__new__(kind)
    with suppress(AssertionError):
        trainer.__init__(config, tokenizer, {}, None)
    return trainer


def _batch(attempts: Attempts) -> object:
    """The attempts as the fork's trainer takes them."""
    responses = attempts.responses.clone()
    return live_module("verl").DataProto.from_dict(
        tensors={
            "responses": responses,
            "input_ids": responses.clone(),
            "response_mask": attempts.response_mask.clone(),
        },
        non_tensors={
            "uid": _objects(attempts.uids),
            "raw_prompt": _objects(attempts.raw_prompt),
        },
    )


def _objects(rows: Sequence[object]) -> np.ndarray:
    """An array of one object for each row."""
    array = np.empty(len(rows), dtype=object)
    for number, row in enumerate(rows):
        array[number] = row
    return array
