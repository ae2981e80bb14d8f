"""Script the world around a trainer: data set, sampler, reward and its feedback.

    data set ─► trainer ─► sampler (`generate`) ─► trainer ─► reward, feedback ─► trainer

The trainer is told nothing else. A sampler that is asked for prompts other than those of the
scenario has not trained on the scenario, so that is an error.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sdpo.parity.cases.checked_call import CandidateError
from sdpo.parity.trainers.scenarios.scenario import EXTRA_PADDING, Generation, Scenario
from sdpo.parity.trainers.scenarios.tiny_model import completion_ids, prompt_ids
from sdpo.parity.trainers.scenarios.training_record import Tensors


class Script:
    """Plays the generations of a scenario in order; in one of several processes, its share.

    Attributes:
        generation: number of the generation that is being learnt from; -1 before the first.
        sampled: what each call of the sampler has returned.
        scored: rewards and feedback of each call of a reward function.
        completions: token ids of each row of each generation.
    """

    def __init__(self, scenario: Scenario, pad_token_id: int, rank: int = 0):
        self.scenario, self.pad_token_id, self.rank = scenario, pad_token_id, rank
        self.completions = [completion_ids(generation) for generation in scenario.generations]
        self.prompts = [prompt_ids(generation) for generation in scenario.generations]
        self.generation, self.served = -1, 0
        self.sampled: list[Tensor] = []
        self.scored: list[list[Any]] = []

    @property
    def present(self) -> Generation:
        """Return the generation that is being learnt from."""
        return self.scenario.generations[self.generation]

    @property
    def rows_per_process(self) -> int:
        """Count the rows of a generation that this process answers."""
        return self.scenario.micro_batch_size * self.scenario.steps_per_generation

    @property
    def max_completion_length(self) -> int:
        """Count the tokens of the longest completion."""
        return max(len(row) for rows in self.completions for row in rows)

    def generate(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> Tensor:
        """Answer in place of the model: prompts as given, each with its scripted completion.

        Args:
            input_ids: `(N, P)` int64, left-padded.
            attention_mask: `(N, P)`.
            _: sampling settings, of no use here.

        Returns:
            `(N, P + T)`, completions right-padded.

        Raises:
            CandidateError: the prompts are not the next ones of the scenario.
        """
        if self.generation < 0 or self.served == self.rows_per_process:
            self.generation, self.served = self.generation + 1, 0
        if self.generation == len(self.completions):
            raise CandidateError(
                "config", f"the trainer generated more than the {self.generation} scripted times"
            )
        start = self.rank * self.rows_per_process + self.served
        rows = slice(start, start + len(input_ids))
        asked = [i[m.bool()].tolist() for i, m in zip(input_ids, attention_mask, strict=True)]
        if asked != self.prompts[self.generation][rows]:
            raise CandidateError(
                "config",
                f"the trainer asked the sampler for {len(asked)} prompts that are not rows "
                f"{rows.start}-{rows.stop - 1} of generation {self.generation}: it must keep the "
                "data set's order, repeat each prompt for its group, and cut nothing",
            )
        self.served += len(input_ids)
        answers = self.completions[self.generation][rows]
        padded = _padded_answers(self.scenario, answers, self.pad_token_id)
        self.sampled.append(torch.cat([input_ids, padded.to(input_ids)], dim=1))
        return self.sampled[-1]

    def row_of(self, ids: list[int]) -> int:
        """Find the row whose completion these ids are, padding after it allowed.

        Raises:
            CandidateError: no row's.
        """
        for row, completion in enumerate(self.completions[self.generation]):
            length = len(completion)
            rest = set(ids[length:]) <= {self.pad_token_id}
            if tuple(ids[:length]) == completion and rest:
                return row
        raise CandidateError("config", f"the trainer learns from {ids}, which is no scripted row")

    def dataset(self, *columns: str) -> Any:
        """Make a data set with the conversations in order.

        Args:
            columns: further columns that hold the feedback of each conversation.
        """
        from datasets import Dataset

        rows = [
            (list(conversation), _feedback_of(generation, group))
            for generation in self.scenario.generations
            for group, conversation in enumerate(generation.conversations)
        ]
        table: dict[str, list[Any]] = {"prompt": [conversation for conversation, _ in rows]}
        for column in columns:
            table[column] = [feedback for _, feedback in rows]
        return Dataset.from_dict(table)


def scripted_batch(scenario: Scenario, generation: Generation, tokenizer: Any) -> Tensors:
    """Lay prompts and completions side by side, for a loop that samples with no `generate`.

    Returns:
        `input_ids`, `attention_mask`, `position_ids`, `(B, P + T)`, prompts left-padded and
        completions right-padded; `responses` and `response_mask`, `(B, T)`; all int64.
    """
    pad, prompts = int(tokenizer.pad_token_id), prompt_ids(generation)
    completions = completion_ids(generation)
    responses = _padded_answers(scenario, completions, pad)
    width = max(map(len, prompts))
    prompt_rows = [[pad] * (width - len(row)) + row for row in prompts]
    prompt_mask = [[0] * (width - len(row)) + [1] * len(row) for row in prompts]
    lengths = torch.tensor([[len(row)] for row in completions])
    response_mask = (torch.arange(responses.shape[1]) < lengths).long()
    attention_mask = torch.cat([torch.tensor(prompt_mask), response_mask], dim=1)
    return {
        "input_ids": torch.cat([torch.tensor(prompt_rows), responses], dim=1),
        "attention_mask": attention_mask,
        "position_ids": (attention_mask.cumsum(dim=1) - 1).clamp(min=0),
        "responses": responses,
        "response_mask": response_mask,
    }


def _padded_answers(
    scenario: Scenario, completions: Sequence[Sequence[int]], pad_token_id: int
) -> Tensor:
    """Pad completions on the right, `(N, T)`, as wide as the sampler of a scenario does."""
    rows = [torch.tensor(row) for row in completions]
    padded = torch.nn.utils.rnn.pad_sequence(rows, True, pad_token_id)
    further = EXTRA_PADDING if scenario.disguise == "extra padding" else 0
    return torch.nn.functional.pad(padded, (0, further), value=pad_token_id)


def _feedback_of(generation: Generation, group: int) -> str | None:
    """Return the feedback of a conversation: that of its first rollout."""
    return generation.rollouts[group * generation.group_size].feedback


def feedback_varies(scenario: Scenario) -> bool:
    """Whether rollouts of one conversation have different feedback."""
    return any(
        rollout.feedback != _feedback_of(generation, row // generation.group_size)
        for generation in scenario.generations
        for row, rollout in enumerate(generation.rollouts)
    )


class ScriptedReward:
    """A reward function that gives the scripted rewards, and leaves `last_feedback`."""

    __name__ = "scripted"

    def __init__(self, script: Script):
        self.script = script
        self.last_feedback: list[str | None] = []

    def __call__(self, completion_ids: list[list[int]], **_: Any) -> list[float]:
        """Return the reward of each completion."""
        rollouts = self.script.present.rollouts
        rows = [rollouts[self.script.row_of(list(ids))] for ids in completion_ids]
        self.last_feedback = [row.feedback for row in rows]
        self.script.scored.append([[row.reward for row in rows], self.last_feedback])
        return [row.reward for row in rows]
