"""Makes what a trainer and an evaluation need of a data set: prompts and tests."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from msgspec import Struct

from sdpo.benchmark.problems.dataset import (
    CONFIGURATIONS,
    DataError,
    Dataset,
    Problem,
    load_file,
    load_hub,
)


class DataSettings(Struct, frozen=True, kw_only=True):
    """Holds the section `[data]` of a run: which problems, and how they become prompts."""

    name: str = "embedded"
    train_split: str = "train"
    eval_split: str = "test"
    system: str = ""
    prompt: str = "{text}"


def load_data(name: str) -> Dataset:
    """Load the problems called `embedded`, `sanitized` or `full` (from the hub), or of a file.

    Raises:
        DataError: they cannot be had, or a problem has no test.
    """
    if name == "embedded":
        data = load_file(embedded_folder() / "problems.jsonl")
    elif name in CONFIGURATIONS:
        data = load_hub(name)
    else:
        data = load_file(Path(name))
    if untested := [problem.task_id for problem in data.problems if not problem.test_list]:
        raise DataError(
            f"{data.origin}: problem {untested[0]} has no test ({len(untested)} such), so that "
            "nothing can be rewarded; leave such problems out"
        )
    return data


def embedded_folder() -> Path:
    """Find the folder of the embedded problems and model."""
    import sdpo.fixtures

    return Path(next(iter(sdpo.fixtures.__path__))) / "embedded"


def messages(problem: Problem, data: DataSettings) -> list[dict[str, str]]:
    """Write the conversation that asks for a solution; `{tests}` in the prompt shows the tests."""
    tests = "\n".join(problem.test_list)
    text = data.prompt.replace("{tests}", tests).replace("{text}", problem.text)
    system = [{"role": "system", "content": data.system}] if data.system else []
    return [*system, {"role": "user", "content": text}]


class TrainingRow(TypedDict):
    """Holds a prompt and the columns that the reward needs."""

    prompt: list[dict[str, str]]
    task_id: int
    test_list: list[str]
    test_imports: str
    test_setup_code: str


def training_rows(
    problems: Sequence[Problem], data: DataSettings, count: int, seed: int
) -> list[TrainingRow]:
    """Make as many rows as a run needs, in an order that the seed alone decides.

    Passes over the problems follow one another, each shuffled anew; no later shuffle is needed,
    and all methods meet the same problems at the same step.
    """
    generator = random.Random(f"order {seed}")
    order: list[Problem] = []
    while len(order) < count:
        order += generator.sample(problems, len(problems))
    return [
        {
            "prompt": messages(problem, data),
            "task_id": problem.task_id,
            "test_list": list(problem.test_list),
            "test_imports": problem.test_imports,
            "test_setup_code": problem.test_setup_code,
        }
        for problem in order[:count]
    ]
