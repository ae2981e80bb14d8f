"""Measures pass@1 of a model: completes problems, scores the completions, adds an interval."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

from msgspec import Meta, Struct

from sdpo.benchmark.problems.case import Case, Status
from sdpo.benchmark.problems.dataset import Problem
from sdpo.benchmark.problems.prompts import DataSettings, messages
from sdpo.benchmark.scoring.executor import Executor
from sdpo.benchmark.scoring.intervals import bootstrap, pass_at_k, wilson

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

Conversation = list[dict[str, str]]


class EvalSettings(Struct, frozen=True, kw_only=True):
    """Holds the section `[eval]` of a run: when and how pass@1 is measured.

    `temperature` 0 is greedy; `limit` 0 asks all problems.
    """

    every: Annotated[int, Meta(ge=1)] = 10
    batch_size: Annotated[int, Meta(ge=1)] = 64
    temperature: Annotated[float, Meta(ge=0)] = 0.0
    samples: Annotated[int, Meta(ge=1)] = 1
    max_new_tokens: Annotated[int, Meta(ge=1)] = 64
    limit: Annotated[int, Meta(ge=0)] = 0


class Scored(TypedDict):
    """Holds a completion and the result of its tests."""

    task_id: int
    status: Status
    passed: int
    total: int
    feedback: str
    completion: str


class PassAt1(TypedDict):
    """Gives pass@1 with its interval, of some problems with `samples` completions each."""

    pass_at_1: float
    low: float
    high: float
    problems: int
    samples: int


class Summary(PassAt1):
    """Gives pass@1, and the number of completions that passed, by task id."""

    passes: dict[str, int]


def complete(
    model: Any,
    tokenizer: Any,
    conversations: Sequence[Conversation],
    settings: EvalSettings,
    *,
    seed: int = 0,
) -> list[str]:
    """Complete each conversation; leaves the global random state and the mode as they were.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer, with a padding token.
        conversations: messages each, the last one the user's.
        settings: temperature, length and batch size are read.
        seed: of the sampling.
    """
    import torch

    generation = _generation_config(tokenizer, settings)
    training, texts = model.training, []
    model.eval()
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for start in range(0, len(conversations), settings.batch_size):
            batch = list(conversations[start : start + settings.batch_size])
            inputs = tokenizer.apply_chat_template(
                batch,
                add_generation_prompt=True,
                padding=True,
                return_tensors="pt",
                return_dict=True,
            ).to(model.device)
            output = model.generate(**inputs, generation_config=generation)
            answers = output[:, inputs["input_ids"].shape[1] :]
            texts += tokenizer.batch_decode(answers, skip_special_tokens=True)
    model.train(training)
    return texts


def _generation_config(
    tokenizer: "PreTrainedTokenizerBase", settings: EvalSettings
) -> "GenerationConfig":
    from transformers import GenerationConfig

    sampled = settings.temperature > 0
    drawing = {"temperature": settings.temperature, "top_k": 0, "top_p": 1.0} if sampled else {}
    return GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        do_sample=sampled,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **drawing,
    )


def score(
    executor: Executor, problems: Sequence[Problem], completions: Sequence[str]
) -> list[Scored]:
    """Run each completion against its problem's tests."""
    asked = list(zip(problems, completions, strict=True))
    cases = [
        Case(
            problem.task_id, text, problem.test_list, problem.test_imports, problem.test_setup_code
        )
        for problem, text in asked
    ]
    return [
        Scored(
            task_id=problem.task_id,
            status=result.status,
            passed=result.passed,
            total=result.total,
            feedback=result.feedback,
            completion=text,
        )
        for (problem, text), result in zip(asked, executor.map(cases), strict=True)
    ]


def summarize(results: Sequence[Scored], problems: Sequence[Problem]) -> Summary:
    """Compute pass@1 with its 95 % interval, and count the passes of each problem.

    With one completion per problem the interval is Wilson's, with several a bootstrap over the
    problems.
    """
    passed: dict[int, list[bool]] = {problem.task_id: [] for problem in problems}
    for result in results:
        passed[result["task_id"]].append(result["status"] == "pass")
    rates = [pass_at_k(len(attempts), sum(attempts), 1) for attempts in passed.values()]
    samples = max(map(len, passed.values()))
    if samples == 1:
        interval = wilson(sum(map(int, rates)), len(rates))
    else:
        interval = bootstrap(rates, limits=(0, 1), resamples=2000)
    return Summary(
        pass_at_1=interval.estimate,
        low=interval.low,
        high=interval.high,
        problems=len(problems),
        samples=samples,
        passes={str(task): sum(attempts) for task, attempts in passed.items()},
    )


def evaluate(
    model: Any,
    tokenizer: Any,
    problems: Sequence[Problem],
    executor: Executor,
    data: DataSettings,
    settings: EvalSettings,
    *,
    seed: int = 0,
) -> tuple[Summary, list[Scored]]:
    """Complete, score and summarize; returns the summary and every result.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer, with a padding token.
        problems: the first `settings.limit` of them are asked.
        executor: runs the tests.
        data: how a problem becomes a prompt.
        settings: how completions are made.
        seed: of the sampling.
    """
    limit = settings.limit or len(problems)
    asked = [problem for problem in problems[:limit] for _ in range(settings.samples)]
    conversations = [messages(problem, data) for problem in asked]
    texts = complete(model, tokenizer, conversations, settings, seed=seed)
    results = score(executor, asked, texts)
    return summarize(results, problems[:limit]), results
