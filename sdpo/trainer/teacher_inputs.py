"""From TRL's rollouts to the tensors of an actor update: feedback, teacher prompts, row order.

Symbols: `B` rows of this process, `P` prompt width, `T` completion width, `W` processes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdpo.prompt.teacher_batch import Attempts, Processes, PromptTrace, teacher_batch
from sdpo.settings.config import SDPOConfig
from sdpo.update.rollouts import TEACHER_KEYS, Rollouts, TRLBatch, as_messages

ROW = "sdpo_row"


class TeacherInputs(NamedTuple):
    """Tensors for the update, metrics, and the stage values of this process's rows."""

    tensors: dict[str, Tensor]
    metrics: dict[str, float]
    trace: PromptTrace


def weighted_rewards(rewards_per_func: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum over reward functions, `(N, F)` to `(N,)`; NaN where no function gave a value.

    A function's NaN (TRL: it returned None for the row) counts as nothing.
    """
    total = (rewards_per_func * weights.to(rewards_per_func.device)).nansum(dim=1)
    return total.masked_fill(rewards_per_func.isnan().all(dim=1), torch.nan)


def collect_feedback(sources: Mapping[str, object], rows: int) -> list[str | None]:
    """One feedback text per row from all sources; several texts are joined by a blank line.

    Args:
        sources: by name, what a reward function, a logged column or the environment left behind;
            None or an empty list means that it has none this time.
        rows: B.

    Raises:
        TypeError: a source is not a list, or an entry neither text nor None.
        ValueError: a source does not have one entry per row; a shifted list would teach every row
            from another row's mistakes, so it is not cut or padded.
    """
    merged: list[list[str]] = [[] for _ in range(rows)]
    for name, entries in sources.items():
        if entries is None or entries == []:
            continue
        if not isinstance(entries, list | tuple):
            raise TypeError(
                f"feedback of {name} is {type(entries).__name__}, not a list with one text or None "
                "per completion"
            )
        if len(entries) != rows:
            raise ValueError(
                f"feedback of {name} has {len(entries)} entries for {rows} completions: give one "
                "text per completion, '' or None where there is none"
            )
        for row, entry in enumerate(entries):
            if not isinstance(entry, str | None):
                raise TypeError(
                    f"feedback of {name}, entry {row}, is {type(entry).__name__}, not text or None"
                )
            if entry and entry.strip():
                merged[row].append(entry)
    return ["\n\n".join(texts) if texts else None for texts in merged]


class PromptTokenizer:
    """The tokenizer as the teacher prompt needs it: the student's own way to render prompts.

    Conversations go through the chat template with the arguments that the student's prompts were
    rendered with; prompts that are plain text are tokenized as they are.
    """

    def __init__(
        self, tokenizer: Any, template_kwargs: Mapping[str, object], *, plain: bool = False
    ):
        self.tokenizer, self.template_kwargs, self.plain = tokenizer, template_kwargs, plain

    @property
    def pad_token_id(self) -> int | None:
        """Id that fills short prompts."""
        return self.tokenizer.pad_token_id

    def decode(self, ids: Any, **options: Any) -> str:
        """Text of some ids."""
        return self.tokenizer.decode(ids, **options)

    def apply_chat_template(self, conversations: Sequence[Any], **options: Any) -> Any:
        """Ids of each prompt."""
        if self.plain:
            return self.tokenizer([messages[-1]["content"] for messages in conversations])
        return self.tokenizer.apply_chat_template(
            conversations, **{**options, **self.template_kwargs}
        )


def teacher_inputs(
    rollouts: Rollouts,
    tokenizer: Any,
    config: SDPOConfig,
    *,
    group_size: int,
    template_kwargs: Mapping[str, object] | None = None,
    gather: Callable[[list[Any]], list[Any]] = list,
    process_index: int = 0,
) -> TeacherInputs:
    """Teacher prompts of this process's rows, with demonstrations from all processes.

    Args:
        rollouts: this process's rows and everyone's rewards.
        tokenizer: the student's.
        config: settings of the teacher prompt.
        group_size: rows per prompt; groups are consecutive, and may lie across processes.
        template_kwargs: chat-template arguments that the student's prompts were rendered with;
            those of `config` are added for the teacher.
        gather: concatenates a list over all processes, in their order.
        process_index: place of this process in that order.

    Raises:
        TypeError: a prompt has content other than text.
        ValueError: a template, a size or a length does not fit; see `sdpo.prompt.teacher_batch`.
    """
    plain = isinstance(rollouts.prompts[0], str)
    # `enable_thinking` is passed by the stage itself; other arguments have to follow the student.
    arguments = {**(template_kwargs or {}), **config.apply_chat_template_kwargs}
    rows = len(rollouts.prompts)
    attempts = Attempts(
        raw_prompt=[as_messages(prompt) for prompt in rollouts.prompts],
        responses=rollouts.responses,
        response_mask=rollouts.response_mask,
        token_level_rewards=rollouts.rewards.unsqueeze(-1).cpu(),
        uids=[row // group_size for row in range(len(rollouts.rewards))],
        feedback_raw=list(rollouts.feedbacks),
    )
    batch = teacher_batch(
        attempts,
        PromptTokenizer(tokenizer, arguments, plain=plain),
        config,
        chat_template_kwargs={k: v for k, v in arguments.items() if k == "enable_thinking"},
        processes=Processes(gather, process_index * rows),
    )
    tensors = {
        **dict(zip(TEACHER_KEYS, batch.tokens, strict=True)),
        "self_distillation_mask": batch.distillation_mask,
        ROW: torch.arange(rows, device=rollouts.responses.device),
    }
    return TeacherInputs(tensors, batch.metrics, batch.trace)


def in_order(parts: Sequence[TRLBatch]) -> list[TRLBatch]:
    """Micro-batches of rows that TRL has shuffled, with the rows in the order of generation.

    The reference does not shuffle; the order decides which rows share a micro-batch.
    """
    order = torch.cat([part[ROW] for part in parts]).argsort()
    sizes = [len(part[ROW]) for part in parts]
    result: list[TRLBatch] = [{} for _ in parts]
    for name, first in parts[0].items():
        if isinstance(first, Tensor) and first.dim():
            columns = torch.cat([part[name] for part in parts])[order].split(sizes)
        elif isinstance(first, list):
            rows = [row for part in parts for row in part[name]]
            spans = order.split(sizes)
            columns = [[rows[row] for row in span.tolist()] for span in spans]
        else:
            columns = [first] * len(parts)
        for part, column in zip(result, columns, strict=True):
            part[name] = column
    return result
