"""Stages `feedback` and `demonstration`: what the attempts of a batch teach each other.

Symbols: `B` rows, `R` response width.
"""

import warnings
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

_THINK_OPEN, _THINK_CLOSE = "<think>", "</think>"


class RepromptWarning(UserWarning):
    """Input that is used as the reference uses it, but is probably not what was meant."""


class Decoder(Protocol):
    """A tokenizer that makes text of ids."""

    def decode(self, ids: list[int], /, *, skip_special_tokens: bool) -> str:
        """Text of some ids."""
        ...


class Demonstration(NamedTuple):
    """The successful row shown to a teacher: its place in the batch, and its cleaned response."""

    row: int
    text: str


def response_texts(responses: Tensor, tokenizer: Decoder) -> list[str]:
    """Decode the responses, special tokens skipped.

    All ids of a row count, whatever the response mask says: text after an end-of-turn token is part
    of the demonstration, as in the reference.

    Args:
        responses: `(B, R)` int64, right-padded.
        tokenizer: has `decode(ids, skip_special_tokens=True)`.

    Returns:
        One text per row.

    Source: `verl/trainer/ppo/ray_trainer.py` 686-686 at 0e6d5106.
    """
    return [tokenizer.decode(ids, skip_special_tokens=True) for ids in responses.tolist()]


def feedback(
    feedback_raw: Sequence[object], n_rows: int, *, include_environment_feedback: bool
) -> list[str | None]:
    """Select the feedback that counts, per row: stage `feedback`.

    An entry counts if it is text with anything but white space in it; it is used verbatim, and
    whether the row itself succeeded does not matter. Missing entries are None, surplus ones are
    ignored.

    Args:
        feedback_raw: the environment's value per row, usually text or None; empty for no feedback.
        n_rows: B.
        include_environment_feedback: False ignores `feedback_raw` altogether.

    Returns:
        B entries, None where no feedback counts.

    Raises:
        TypeError: `feedback_raw` is not a sequence of rows (None, one text for all, a mapping).

    Warns:
        RepromptWarning: there are entries, but not one per row; or one is neither text nor None.

    Source: `verl/trainer/ppo/ray_trainer.py` 610-634 at 0e6d5106.
    """
    if not include_environment_feedback:
        return [None] * n_rows
    if isinstance(feedback_raw, str | bytes | Mapping) or not hasattr(feedback_raw, "__len__"):
        raise TypeError(
            f"feedback must be a list with one entry per row, not {type(feedback_raw).__name__}; "
            "pass [] for no feedback"
        )
    entries = list(feedback_raw)
    if entries and len(entries) != n_rows:
        warn(f"feedback has {len(entries)} entries for {n_rows} rows; rows are matched in order")
    odd = [(i, x) for i, x in enumerate(entries) if not (x is None or isinstance(x, str))]
    if odd:
        row, value = odd[0]
        warn(
            f"feedback of row {row} is {type(value).__name__}, not text, and is dropped "
            f"({len(odd)} such rows)"
        )
    entries = entries[:n_rows] + [None] * (n_rows - len(entries))
    return [x if isinstance(x, str) and x.strip() else None for x in entries]


def successes(token_level_rewards: Tensor, success_reward_threshold: float) -> list[bool]:
    """Tell which rows succeeded: the sum of a row's rewards is at least the threshold.

    Args:
        token_level_rewards: `(B, R)`, usually float32.
        success_reward_threshold: compared in the dtype of the sum.

    Returns:
        One truth value per row; NaN is never a success.

    Raises:
        ValueError: the rewards are not `(B, R)`.

    Numerics: sums in float32, or in float64 for float64 rewards, and rounds the threshold to that
    dtype, so that a float32 reward of 0.7 reaches the threshold 0.7.

    Source: `verl/trainer/ppo/ray_trainer.py` 636-643 at 0e6d5106.
    """
    if token_level_rewards.dim() != 2:
        raise ValueError(
            f"token_level_rewards has shape {tuple(token_level_rewards.shape)}, not (B, R); "
            "put one reward per row at the row's last token"
        )
    dtype = torch.promote_types(token_level_rewards.dtype, torch.float32)
    scores = token_level_rewards.sum(-1, dtype=dtype)
    return (scores >= scores.new_tensor(success_reward_threshold)).tolist()


def remove_thinking(text: str) -> str:
    """Delete every `<think>…</think>` with the white space after it; nothing else is trimmed.

    A span ends at the first closing tag; tags without partner stay; case matters.

    Numerics: linear in the length of the text, also for many tags, closed or not.

    Source: `verl/trainer/ppo/ray_trainer.py` 645-648 at 0e6d5106.
    """
    kept, start = [], 0
    while True:
        opened = text.find(_THINK_OPEN, start)
        closed = text.find(_THINK_CLOSE, opened) if opened >= 0 else -1
        if closed < 0:
            return "".join([*kept, text[start:]])
        kept.append(text[start:opened])
        start = closed + len(_THINK_CLOSE)
        while text[start : start + 1].isspace():
            start += 1


def demonstration(
    response_texts: Sequence[str],
    token_level_rewards: Tensor,
    uids: Sequence[Hashable] | Tensor,
    *,
    success_reward_threshold: float,
    dont_reprompt_on_self_success: bool,
    remove_thinking_from_demonstration: bool,
) -> list[Demonstration | None]:
    """Choose for each row the first successful attempt of its group: stage `demonstration`.

    Args:
        response_texts: B decoded responses.
        token_level_rewards: `(B, R)`, usually float32.
        uids: group id per row; equal ids are attempts at the same problem, in any order.
        success_reward_threshold: least sum of rewards that is a success.
        dont_reprompt_on_self_success: never show a row its own attempt.
        remove_thinking_from_demonstration: apply `remove_thinking` to the text.

    Returns:
        Per row the chosen row and its text, None where the group has no (other) success. A text
        that is empty after the removal is still a demonstration.

    Raises:
        ValueError: the arguments disagree on B, or the rewards are not `(B, R)`.

    Source: `verl/trainer/ppo/ray_trainer.py` 650-669 at 0e6d5106.
    """
    groups = group_ids(uids)
    succeeded = successes(token_level_rewards, success_reward_threshold)
    check_rows(response_texts=response_texts, token_level_rewards=succeeded, uids=groups)
    clean = remove_thinking if remove_thinking_from_demonstration else str
    candidates: dict[Hashable, list[int]] = {}
    for row, uid in enumerate(groups):
        if succeeded[row]:
            candidates.setdefault(uid, []).append(row)
    chosen: list[Demonstration | None] = []
    for row, uid in enumerate(groups):
        peers = candidates.get(uid, [])[:2]
        if dont_reprompt_on_self_success:
            peers = [peer for peer in peers if peer != row]
        chosen.append(Demonstration(peers[0], clean(response_texts[peers[0]])) if peers else None)
    return chosen


def group_ids(uids: Sequence[Hashable] | Tensor) -> list[Hashable]:
    """Make group ids plain values: tensors are equal by value, but not as dictionary keys."""
    return [uid.item() if isinstance(uid, Tensor) else uid for uid in uids]


def check_rows(**per_row: Sequence[object]) -> None:
    """Check that arguments have one entry per row.

    Raises:
        ValueError: they differ in length.
    """
    if len({len(values) for values in per_row.values()}) > 1:
        lengths = ", ".join(f"{name} {len(values)}" for name, values in per_row.items())
        raise ValueError(f"one entry per row is needed, but the numbers differ: {lengths}")


def warn(message: str) -> None:
    """Issue a `RepromptWarning`."""
    warnings.warn(message, RepromptWarning, stacklevel=3)
