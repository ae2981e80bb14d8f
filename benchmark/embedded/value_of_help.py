"""What help in the prompt is worth to a model: pass@1 plain, with a demonstration, with feedback.

| prompt | what is in it |
|---|---|
| plain | the problem; a `reading` is its solution under any meaning of the invented verbs |
| right demonstration | a correct solution, as the teacher's prompt shows one |
| wrong demonstration | the model's own failed attempt, or another program, presented as correct |
| feedback | the executor's real feedback to the model's own failed attempt |

Feedback can only be measured where the plain attempt failed; there plain is 0 by definition. The
same is said for the demonstrations on those problems, so that the ways can be compared.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from sdpo.benchmark.embedded.generate_problems import readings
from sdpo.benchmark.embedded.lessons import taught
from sdpo.benchmark.problems.dataset import Problem
from sdpo.benchmark.problems.prompts import DataSettings, messages
from sdpo.benchmark.scoring.executor import Executor
from sdpo.benchmark.scoring.intervals import wilson
from sdpo.benchmark.scoring.pass_at_1 import EvalSettings, complete, score

Results = Sequence[Mapping[str, Any]]


def measure(
    model: Any,
    tokenizer: Any,
    problems: Sequence[Problem],
    executor: Executor,
    data: DataSettings,
    settings: EvalSettings,
) -> list[dict[str, Any]]:
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
        chosen: Sequence[Problem], help: Sequence[dict[str, str]], sampled: bool
    ) -> Results:
        conversations = []
        for one, given in zip(chosen, help, strict=True):
            asked = messages(one, data)
            asked[-1]["content"] = (
                taught(asked[-1]["content"], **given) if given else asked[-1]["content"]
            )
            conversations.append(asked)
        how = replace(settings, temperature=1.0 if sampled else 0.0)
        return score(executor, chosen, complete(model, tokenizer, conversations, how))

    nothing: list[dict[str, str]] = [{} for _ in problems]
    plain = attempt(problems, nothing, False)
    failed = [i for i, result in enumerate(plain) if result["status"] != "pass"]
    hard = [problems[i] for i in failed]
    shown = [{"solution": one.code} for one in problems]
    told = [{"told": plain[i]["feedback"]} for i in failed]
    wrong = [{"solution": plain[i]["completion"]} for i in failed]
    right = attempt(problems, shown, False)
    rows = {
        "plain, greedy": plain,
        "plain, sampled at temperature 1": attempt(problems, nothing, True),
        "plain, greedy: any reading": read(problems, plain),
        "right demonstration": right,
        "right demonstration, where plain failed": [right[i] for i in failed],
        "feedback, where plain failed": attempt(hard, told, False),
        "wrong demonstration, where plain failed": attempt(hard, wrong, False),
    }
    return [row(name, results) for name, results in rows.items() if results]


def read(problems: Sequence[Problem], results: Results) -> Results:
    """Whether answers are right but for the meaning of invented verbs: what is left to learn.

    Empty for problems that are not the embedded ones.
    """
    known = readings()
    if any(one.text not in known for one in problems):
        return []
    return [
        {"status": "pass" if f"{result['completion'].strip()}\n" in known[one.text] else "fail"}
        for one, result in zip(problems, results, strict=True)
    ]


def row(name: str, results: Results) -> dict[str, Any]:
    """Rate with its interval."""
    passed = sum(result["status"] == "pass" for result in results)
    found = wilson(passed, len(results))
    return {
        "prompt": name,
        "attempts": len(results),
        "passed": passed,
        "pass_at_1": found.estimate,
        "low": found.low,
        "high": found.high,
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = ["| prompt | n | pass@1 | 95 % interval |", "|---|--:|--:|--:|"]
    lines += [
        f"| {one['prompt']} | {one['attempts']} | {one['pass_at_1']:.3f} "
        f"| {one['low']:.3f} – {one['high']:.3f} |"
        for one in rows
    ]
    return "\n".join(lines)
