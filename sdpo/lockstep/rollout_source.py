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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, cast

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from trl.trainer.utils import is_async_callable

from sdpo.lockstep.reference_inputs import padded, student_rows
from sdpo.reference.teacher_prompt import Tokenizer

if TYPE_CHECKING:
    from sdpo.trainer.sdpo_trainer import SDPOTrainer
    from sdpo.update.rollouts import TRLBatch

T = TypeVar("T")
RewardFunction = nn.Module | Callable[..., Any]


class Rollouts(NamedTuple):
    """The rows of this process as they arose.

    `prompts` has B conversations or texts; `rewards` is `(B,)`, or `(W*B,)` over all processes in
    their order; `feedbacks` has B entries, text or None.
    """

    prompts: Sequence[Any]
    responses: Tensor
    response_mask: Tensor
    rewards: Tensor
    feedbacks: Sequence[object]


class TokenizerOfTRL(Tokenizer, Protocol):
    """The tokenizer of a trainer, which pads."""

    pad_token_id: int


def tokenizer_of(trainer: "SDPOTrainer") -> TokenizerOfTRL:
    """Return the trainer's tokenizer, which may lie inside of a processor."""
    processor = trainer.processing_class
    return cast("TokenizerOfTRL", getattr(processor, "tokenizer", processor))


class SourceError(RuntimeError):
    """What passed does not make up an update: a place was not passed, or rows are missing."""


@dataclass
class Answer:
    """What one reward function said of the rollouts that it was shown, in that order.

    `shown` identifies each rollout; None where a reward model was shown texts only.
    """

    values: list[float | None]
    shown: list[str] | None = None


@dataclass
class Passed:
    """Everything that passed since the last generation began."""

    rows: list[dict[str, object]] = field(default_factory=list)
    prompts: list[Any] = field(default_factory=list)
    generated: Sequence[Any] = ()
    answers: dict[int, Answer] = field(default_factory=dict)
    feedback: dict[int, list[object]] = field(default_factory=dict)
    logged: dict[str, list[object]] = field(default_factory=lambda: defaultdict(list))


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

    def __init__(self, trainer: "SDPOTrainer"):
        self.trainer, self.passed = trainer, Passed()
        score, generate = trainer._generate_and_score_completions, trainer._generate

        def scoring(inputs: "list[TRLBatch]") -> Any:
            self.passed = Passed(rows=[dict(row) for row in inputs])
            return score(inputs)

        def generating(prompts: list[Any]) -> Any:
            self.passed.prompts = list(prompts)
            self.passed.generated = generate(prompts)
            return self.passed.generated

        trainer._generate_and_score_completions, trainer._generate = scoring, generating
        trainer.reward_funcs = [
            self._listened_to(number, function)
            for number, function in enumerate(trainer.reward_funcs)
        ]

    def _listened_to(self, number: int, function: RewardFunction) -> RewardFunction:
        """Make a reward function tell what it answers; a reward model keeps its kind."""
        if isinstance(function, nn.Module):
            function.register_forward_hook(
                lambda module, inputs, output: self.answered(number, {}, output.logits[:, 0])
            )
            return function
        return (_Awaited if is_async_callable(function) else _Called)(function, self, number)

    def asked(self, arguments: Mapping[str, object]) -> dict[str, object]:
        """Pass a reward function's arguments on, and keep a copy of every column that it logs."""
        log = arguments.get("log_extra")
        if not callable(log):
            return dict(arguments)

        def logging(column: str, values: list[object]) -> None:
            self.passed.logged[column].extend(values)
            log(column, values)

        return {**arguments, "log_extra": logging}

    def answered(
        self, number: int, arguments: Mapping[str, object], values: Iterable[float | None]
    ) -> None:
        """Keep what a reward function gave, and the feedback that all of them hold now."""
        prompts: Any = arguments.get("prompts", ())
        completions: Any = arguments.get("completion_ids", ())
        shown = [repr((p, list(ids))) for p, ids in zip(prompts, completions, strict=True)]
        self.passed.answers[number] = Answer(list(values), shown or None)
        for other, function in enumerate(self.trainer.reward_funcs):
            if hasattr(function, "last_feedback"):
                feedback = function.last_feedback
                self.passed.feedback[other] = list(feedback) if feedback is not None else []

    def take(self) -> Taken:
        """Take the rows of the generation that has just been scored.

        Raises:
            SourceError: on every process, if on one of them the trainer went past one of the
                places, or a reward function was shown other rollouts than were generated.
        """
        accelerator, rows, problem = self.trainer.accelerator, None, ""
        try:
            rows = self._rows()
        except SourceError as error:
            problem = str(error)
        if problems := [text for text in gather_object([problem]) if text]:
            raise SourceError(problems[0])
        assert rows is not None
        rollouts, tensors, sampled = rows
        rollouts = rollouts._replace(rewards=accelerator.gather(rollouts.rewards))
        keys = gather_object([repr(row.get("prompt", row)) for row in self.passed.rows])
        uids = groups(keys, self.trainer.args.num_generations)
        return Taken(rollouts, uids, tensors, sampled)

    def _rows(self) -> tuple[Rollouts, dict[str, Tensor], Tensor | None]:
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
        multiple, device = int(trainer.pad_to_multiple_of or 1), trainer.accelerator.device
        pad = tokenizer_of(trainer).pad_token_id
        counted = [[1] * len(row) for row in ids]
        if trainer.args.mask_truncated_completions:
            ends = {*trainer.eos_token_ids, pad}
            counted = [[int(row[-1] in ends)] * len(row) for row in ids]
        prompts = padded(prompt_ids, pad, multiple, left=True)
        prompt_mask = padded([[1] * len(row) for row in prompt_ids], 0, multiple, left=True)
        responses, mask = padded(ids, pad, multiple), padded(counted, 0, multiple)
        tools = None if tool_mask is None else padded(tool_mask, 0, multiple)
        tensors = student_rows(prompts, prompt_mask, responses, mask, tools)
        if sampled is not None:
            known = [[math.nan if x is None else x for x in row] for row in sampled]
            sampled = padded(known, 0.0, multiple).to(device)
        return {name: tensor.to(device) for name, tensor in tensors.items()}, sampled

    def _order(self, answer: Answer, prompts: Sequence[Any]) -> list[int]:
        """Find for each generated row the place at which a reward function was shown it."""
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

    def _in_order(self, answers: list[T], answer: Answer, prompts: Sequence[Any]) -> list[T]:
        """Order what was answered as the rollouts were generated."""
        order = self._order(answer, prompts)
        if answers and len(answers) != len(order):
            raise SourceError(f"{len(answers)} answers for {len(order)} rollouts")
        return [answers[place] for place in order] if answers else []

    def _rewards(self, prompts: Sequence[Any]) -> Tensor:
        """Add up what each function gave, weighted, `(B,)` float32; NaN where none gave any."""
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
        """Join the texts of each row in the order of `docs/trainer.md`: functions, log, columns."""
        passed, column = self.passed, self.trainer.sdpo_config.feedback_column
        sources: list[list[object]] = []
        for number, feedback in passed.feedback.items():
            sources.append(self._in_order(feedback, passed.answers[number], prompts))
        logged = passed.logged.get(column, [])
        sources.append(self._in_order(logged, next(iter(passed.answers.values())), prompts))
        extra = passed.generated[5]
        rows = [
            {**row, **{n: v[i] if isinstance(v, list) else v for n, v in extra.items()}}
            for i, row in enumerate(passed.rows)
        ]
        if any(column in row for row in rows):
            sources.append([row.get(column) for row in rows])
        by_row = [[source[i] for source in sources if source] for i in range(len(prompts))]
        kept = [[t for t in texts if isinstance(t, str) and t.strip()] for texts in by_row]
        return ["\n\n".join(texts) if texts else None for texts in kept]


class _Called:
    """Stands for a reward function, and tells what it answered."""

    def __init__(self, function: Callable[..., Any], source: Source, number: int):
        vars(self).update(_function=function, _source=source, _number=number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Answer as the function does."""
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
        """Answer as the function does."""
        answer = list(await self._function(*args, **self._source.asked(kwargs)))
        self._source.answered(self._number, kwargs, answer)
        return answer


def groups(keys: Sequence[str], size: int) -> list[int]:
    """Number the groups of all rows: `size` rows of one prompt, wherever they lie.

    A prompt that the data set holds twice makes two groups: its first `size` rows, and the next.
    """
    numbers: dict[tuple[str, int], int] = {}
    seen: Counter[str] = Counter()
    groups = []
    for key in keys:
        groups.append(numbers.setdefault((key, seen[key] // size), len(numbers)))
        seen[key] += 1
    return groups
