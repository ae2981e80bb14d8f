"""What an update is made of, taken where it arises and not from the trainer that is judged.

    data loader ─► rows     generator ─► ids, tool masks, sampler's log-probs
    reward functions ─► rewards, `last_feedback`, logged columns, for the rollouts shown

A trainer that moves feedback or rewards by a row, or puts rows together that are no group, hands on
its own mistake. `Source` therefore listens at the three places and builds the rows again. It only
listens: what passes is handed on as it is. Symbols: `B` rows of this process, `P` prompt width, `T`
completion width, `W` processes.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from trl.trainer.utils import is_async_callable

TEACHER_KEYS = ("teacher_input_ids", "teacher_attention_mask", "teacher_position_ids")
FURTHER_KEYS = (*TEACHER_KEYS, "self_distillation_mask", "rollout_is_weights", "old_log_probs")


class Rollouts(NamedTuple):
    """The rows of this process as they arose.

    `prompts` has B conversations or texts; `rewards` is `(B,)`, or `(W*B,)` over all processes in
    their order; `feedbacks` has B entries, text or None.
    """

    prompts: Sequence[Any]
    responses: Tensor
    response_mask: Tensor
    rewards: Tensor
    feedbacks: Sequence[Any]


class SourceError(RuntimeError):
    """What passed does not make up an update: a place was not passed, or rows are missing."""


@dataclass
class Answer:
    """What one reward function said of the rollouts that it was shown, in that order.

    `shown` identifies each rollout; None where a reward model was shown texts only.
    """

    values: list[Any]
    shown: list[str] | None = None


@dataclass
class Passed:
    """Everything that passed since the last generation began."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    prompts: list[Any] = field(default_factory=list)
    generated: Sequence[Any] = ()
    answers: dict[int, Answer] = field(default_factory=dict)
    feedback: dict[int, Any] = field(default_factory=dict)
    logged: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))


@dataclass
class Taken:
    """The rows of an update as they arose.

    `uids` has `W*B` entries, the same for the rows of a group; `tensors` are those of an actor
    update under the reference's names; `sampled` are the sampler's log-probs `(B, T)`, if known.
    """

    rollouts: Rollouts
    uids: list[int]
    tensors: dict[str, Tensor]
    sampled: Tensor | None


class Source:
    """Listens to a trainer's data loader, generator and reward functions."""

    def __init__(self, trainer: Any):
        self.trainer, self.passed = trainer, Passed()
        score, generate = trainer._generate_and_score_completions, trainer._generate

        def scoring(inputs: Any) -> Any:
            self.passed = Passed(rows=[dict(row) for row in inputs])
            return score(inputs)

        def generating(prompts: Any) -> Any:
            self.passed.prompts = list(prompts)
            self.passed.generated = generate(prompts)
            return self.passed.generated

        trainer._generate_and_score_completions, trainer._generate = scoring, generating
        trainer.reward_funcs = [
            self._listened_to(number, function)
            for number, function in enumerate(trainer.reward_funcs)
        ]

    def _listened_to(self, number: int, function: Any) -> Any:
        """A reward function that tells what it answers; a reward model keeps its kind."""
        if isinstance(function, nn.Module):
            function.register_forward_hook(
                lambda module, inputs, output: self.answered(number, {}, output.logits[:, 0])
            )
            return function
        return (_Awaited if is_async_callable(function) else _Called)(function, self, number)

    def asked(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """A reward function's arguments, with a copy kept of every column that it logs."""
        log = arguments.get("log_extra")
        if log is None:
            return dict(arguments)

        def logging(column: str, values: list[Any]) -> None:
            self.passed.logged[column].extend(values)
            log(column, values)

        return {**arguments, "log_extra": logging}

    def answered(self, number: int, arguments: Mapping[str, Any], values: Any) -> None:
        """Keep what a reward function gave, and the feedback that all of them hold now."""
        pairs = zip(arguments.get("prompts", ()), arguments.get("completion_ids", ()), strict=True)
        shown = [repr((prompt, list(ids))) for prompt, ids in pairs]
        self.passed.answers[number] = Answer(list(values), shown or None)
        for other, function in enumerate(self.trainer.reward_funcs):
            if hasattr(function, "last_feedback"):
                said = function.last_feedback
                self.passed.feedback[other] = list(said) if said is not None else []

    def take(self) -> Taken:
        """The rows of the generation that has just been scored.

        Raises:
            SourceError: on every process, if on one of them the trainer went past one of the
                places, or a reward function was shown other rollouts than were generated.
        """
        accelerator, own, problem = self.trainer.accelerator, None, ""
        try:
            own = self._own()
        except SourceError as error:
            problem = str(error)
        if problems := [text for text in gather_object([problem]) if text]:
            raise SourceError(problems[0])
        assert own is not None
        rollouts, tensors, sampled = own
        rollouts = rollouts._replace(rewards=accelerator.gather(rollouts.rewards))
        keys = gather_object([repr(row.get("prompt", row)) for row in self.passed.rows])
        uids = groups(keys, self.trainer.args.num_generations)
        return Taken(rollouts, uids, tensors, sampled)

    def _own(self) -> tuple[Rollouts, dict[str, Tensor], Tensor | None]:
        """This process's rows, with their own rewards only, tensors and sampler's log-probs."""
        trainer, passed = self.trainer, self.passed
        if not passed.generated or len(passed.answers) < len(trainer.reward_funcs):
            raise SourceError(
                "the audit did not hear the generator, or not all reward functions: the trainer "
                "goes past them, or they were replaced after it was made"
            )
        prompts = passed.prompts
        if trainer.environment_factories is None:
            prompts = [row["prompt"] for row in passed.rows]
        tensors, sampled = self._tensors()
        responses, mask = tensors["responses"], tensors["response_mask"]
        rewards, feedback = self._rewards(prompts), self._feedback(prompts)
        return Rollouts(prompts, responses, mask, rewards, feedback), tensors, sampled

    def _tensors(self) -> tuple[dict[str, Tensor], Tensor | None]:
        """The student's inputs, and the sampler's log-probs.

        Numerics: as TRL, prompts are padded on the left, completions on the right, both to the
        longest of this process; a completion without an end does not count, if settings say so.
        """
        trainer, generated = self.trainer, self.passed.generated
        prompt_ids, ids, tool_mask, _, sampled = generated[:5]
        tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
        multiple, device = trainer.pad_to_multiple_of or 1, trainer.accelerator.device
        pad = tokenizer.pad_token_id
        counted = [[1] * len(row) for row in ids]
        if trainer.args.mask_truncated_completions:
            ends = {*trainer.eos_token_ids, pad}
            counted = [[int(row[-1] in ends)] * len(row) for row in ids]
        prompts = padded(prompt_ids, pad, multiple, left=True)
        prompt_mask = padded([[1] * len(row) for row in prompt_ids], 0, multiple, left=True)
        responses, mask = padded(ids, pad, multiple), padded(counted, 0, multiple)
        tools = None if tool_mask is None else padded(tool_mask, 0, multiple)
        tensors = _student_rows(prompts, prompt_mask, responses, mask, tools)
        if sampled is not None:
            known = [[math.nan if x is None else x for x in row] for row in sampled]
            sampled = padded(known, 0.0, multiple).to(device)
        return {name: tensor.to(device) for name, tensor in tensors.items()}, sampled

    def _order(self, answer: Answer, prompts: Sequence[Any]) -> list[int]:
        """For each generated row the place at which a reward function was shown it."""
        ids = self.passed.generated[1]
        if answer.shown is None:
            return list(range(len(ids)))
        places = defaultdict(list)
        for place, key in enumerate(answer.shown):
            places[key].append(place)
        wanted = [repr((p, list(row))) for p, row in zip(prompts, ids, strict=True)]
        if Counter(wanted) != Counter(answer.shown):
            raise SourceError("a reward function was shown other rollouts than were generated")
        return [places[key].pop(0) for key in wanted]

    def _in_order(self, said: list[Any], answer: Answer, prompts: Sequence[Any]) -> list[Any]:
        """What was said of the rollouts, in the order in which they were generated."""
        order = self._order(answer, prompts)
        if said and len(said) != len(order):
            raise SourceError(f"{len(said)} answers for {len(order)} rollouts")
        return [said[place] for place in order] if said else []

    def _rewards(self, prompts: Sequence[Any]) -> Tensor:
        """`(B,)` float32: the weighted sum of what each function gave; NaN where none gave any."""
        answers = [self.passed.answers[n] for n in range(len(self.trainer.reward_funcs))]
        columns = [
            [math.nan if value is None else float(value) for value in column]
            for column in (self._in_order(a.values, a, prompts) for a in answers)
        ]
        values = torch.tensor(columns, dtype=torch.float32).T.contiguous()
        weights = self.trainer.args.reward_weights or [1.0] * len(columns)
        total = (values * torch.tensor(weights, dtype=torch.float32)).nansum(dim=1)
        total = torch.where(values.isnan().all(dim=1), torch.nan, total)
        return total.to(self.trainer.accelerator.device)

    def _feedback(self, prompts: Sequence[Any]) -> list[str | None]:
        """One text or None per row, in the order of `docs/trainer.md`: functions, log, columns."""
        passed, column = self.passed, self.trainer.sdpo_config.feedback_column
        sources = []
        for number, said in passed.feedback.items():
            sources.append(self._in_order(said, passed.answers[number], prompts))
        logged = passed.logged.get(column, [])
        sources.append(self._in_order(logged, next(iter(passed.answers.values())), prompts))
        extra = passed.generated[5]
        rows = [
            {**row, **{n: v[i] if isinstance(v, list) else v for n, v in extra.items()}}
            for i, row in enumerate(passed.rows)
        ]
        if any(column in row for row in rows):
            sources.append([row.get(column) for row in rows])
        told = [[said[i] for said in sources if said] for i in range(len(prompts))]
        kept = [[text for text in texts if text and text.strip()] for texts in told]
        return ["\n\n".join(texts) if texts else None for texts in kept]


class _Called:
    """Stands for a reward function, and tells what it answered."""

    def __init__(self, function: Any, source: Source, number: int):
        vars(self).update(_function=function, _source=source, _number=number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The function's own answer."""
        answer = list(self._function(*args, **self._source.asked(kwargs)))
        self._source.answered(self._number, kwargs, answer)
        return answer

    def __getattr__(self, name: str) -> Any:
        if "_function" not in vars(self):  # a copy in the making
            raise AttributeError(name)
        return getattr(self._function, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._function, name, value)


class _Awaited(_Called):
    """The same for a reward function that is awaited."""

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The function's own answer."""
        answer = list(await self._function(*args, **self._source.asked(kwargs)))
        self._source.answered(self._number, kwargs, answer)
        return answer


def _student_rows(
    prompts: Tensor, prompt_mask: Tensor, responses: Tensor, mask: Tensor, tools: Tensor | None
) -> dict[str, Tensor]:
    """Prompts `(B, P)` and completions `(B, T)` with their masks under the reference's names.

    Positions count the attended tokens from 0; `tools` is 0 where a tool wrote a token.
    """
    attention_mask = torch.cat([prompt_mask, mask], dim=1)
    return {
        "input_ids": torch.cat([prompts, responses], dim=1),
        "attention_mask": attention_mask,
        "position_ids": (attention_mask.cumsum(-1) - 1).clamp(min=0),
        "responses": responses,
        "response_mask": mask if tools is None else mask * tools,
    }


def update_rows(buffered: Mapping[str, Any]) -> dict[str, Tensor]:
    """TRL's buffered rows of a generation under the reference's names."""
    rows = _student_rows(
        buffered["prompt_ids"],
        buffered["prompt_mask"],
        buffered["completion_ids"],
        buffered["completion_mask"],
        buffered.get("tool_mask"),
    )
    return rows | {n: buffered[n] for n in FURTHER_KEYS if buffered.get(n) is not None}


def padded(rows: Sequence[Any], value: Any, multiple: int, *, left: bool = False) -> Tensor:
    """Rows of numbers as one tensor `(B, width)`, filled with `value` to a multiple of a number."""
    width = max(len(row) for row in rows)
    width = -(-width // multiple) * multiple
    fills = [[value] * (width - len(row)) for row in rows]
    pairs = zip(rows, fills, strict=True)
    return torch.tensor([fill + list(row) if left else list(row) + fill for row, fill in pairs])


def groups(keys: Sequence[Any], size: int) -> list[int]:
    """A number for each row's group: `size` rows of one prompt, wherever they lie.

    A prompt that the data set holds twice makes two groups: its first `size` rows, and the next.
    """
    numbers: dict[Any, int] = {}
    seen: Counter[Any] = Counter()
    found = []
    for key in keys:
        found.append(numbers.setdefault((key, seen[key] // size), len(numbers)))
        seen[key] += 1
    return found
