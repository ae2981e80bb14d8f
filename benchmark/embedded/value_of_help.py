"""Measures what help in the prompt is worth to a model: pass@1 with a demonstration or feedback.

| prompt | content |
|---|---|
| plain | the problem; a `reading` is its solution under any meaning of the invented verbs |
| right demonstration | a correct solution, as the teacher's prompt shows one |
| wrong demonstration | the model's own failed attempt, or another program, presented as correct |
| feedback | the executor's real feedback to the model's own failed attempt |

Feedback can only be measured where the plain attempt failed; there plain is 0 by definition. The
demonstrations are also measured on those problems, so that they can be compared with feedback.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

from msgspec.structs import replace

from sdpo.benchmark.embedded.generate_problems import readings
from sdpo.benchmark.embedded.lessons import taught
from sdpo.benchmark.problems.dataset import Problem
from sdpo.benchmark.problems.prompts import DataSettings, messages
from sdpo.benchmark.scoring.executor import Executor
from sdpo.benchmark.scoring.intervals import wilson
from sdpo.benchmark.scoring.pass_at_1 import EvalSettings, Scored, complete, score
from sdpo.runtime.markdown_table import markdown_table

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Help(TypedDict, total=False):
    """Holds what a prompt shows beside its problem: the arguments of `taught`."""

    solution: str
    told: str


class PromptRate(TypedDict):
    """Gives pass@1 with one kind of prompt, and its interval."""

    prompt: str
    attempts: int
    pass_at_1: float
    low: float
    high: float


class HelpRate(PromptRate):
    """Also counts the attempts that passed."""

    passed: int


def measure(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    problems: Sequence[Problem],
    executor: Executor,
    data: DataSettings,
    settings: EvalSettings,
) -> list[HelpRate]:
    """Measure pass@1 with each kind of prompt; one row for each.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer, with a padding token.
        problems: that are asked.
        executor: runs the tests.
        data: how a problem becomes a prompt.
        settings: how completions are made, but for the temperature.
    """

    def attempt(
        chosen: Sequence[Problem], helps: Sequence[Help], temperature: float = 0.0
    ) -> list[Scored]:
        conversations = []
        for problem, help in zip(chosen, helps, strict=True):
            conversation = messages(problem, data)
            if help:
                conversation[-1]["content"] = taught(conversation[-1]["content"], **help)
            conversations.append(conversation)
        texts = complete(
            model, tokenizer, conversations, replace(settings, temperature=temperature)
        )
        return score(executor, chosen, texts)

    no_help: list[Help] = [{} for _ in problems]
    plain = attempt(problems, no_help)
    failed = [i for i, result in enumerate(plain) if result["status"] != "pass"]
    hard = [problems[i] for i in failed]
    right = _passed(attempt(problems, [{"solution": problem.code} for problem in problems]))
    passed = {
        "plain, greedy": _passed(plain),
        "plain, sampled at temperature 1": _passed(attempt(problems, no_help, 1.0)),
        "plain, greedy: any reading": _is_reading(problems, plain),
        "right demonstration": right,
        "right demonstration, where plain failed": [right[i] for i in failed],
        "feedback, where plain failed": _passed(
            attempt(hard, [{"told": plain[i]["feedback"]} for i in failed])
        ),
        "wrong demonstration, where plain failed": _passed(
            attempt(hard, [{"solution": plain[i]["completion"]} for i in failed])
        ),
    }
    return [_rate(prompt, each) for prompt, each in passed.items() if each]


def _passed(results: Sequence[Scored]) -> list[bool]:
    return [result["status"] == "pass" for result in results]


def _is_reading(problems: Sequence[Problem], results: Sequence[Scored]) -> list[bool]:
    """Tell whether answers are right but for the meaning of invented verbs.

    Empty for problems that are not the embedded ones.
    """
    known = readings()
    if any(problem.text not in known for problem in problems):
        return []
    return [
        f"{result['completion'].strip()}\n" in known[problem.text]
        for problem, result in zip(problems, results, strict=True)
    ]


def _rate(prompt: str, passed: Sequence[bool]) -> HelpRate:
    rate = wilson(sum(passed), len(passed))
    return HelpRate(
        prompt=prompt,
        attempts=len(passed),
        passed=sum(passed),
        pass_at_1=rate.estimate,
        low=rate.low,
        high=rate.high,
    )


def table(rows: Sequence[PromptRate]) -> str:
    """Show the rows as Markdown."""
    cells = (
        (
            row["prompt"],
            row["attempts"],
            f"{row['pass_at_1']:.3f}",
            f"{row['low']:.3f} – {row['high']:.3f}",
        )
        for row in rows
    )
    return markdown_table(("prompt", "n", "pass@1", "95 % interval"), cells)
