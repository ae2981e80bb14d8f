"""Generates the embedded problem set in MBPP's schema and with MBPP's ranges of task ids.

    python -m sdpo.benchmark.embedded.generate_problems fixtures/embedded/problems.jsonl

Splits are by family (`Program.family`): a combination of verbs is in one split only, and each verb
occurs in training. A test problem therefore asks for a new combination of verbs whose meaning can
be learnt from the training problems.
"""

import argparse
import contextlib
import itertools
import json
import random
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypedDict

from sdpo.benchmark.embedded.language import NAMES, SYMBOLS, Program, Step, Verb, families
from sdpo.benchmark.problems.dataset import SPLITS

SEED = 20260112
TESTS = 3
SIZES = {"test": 180, "validation": 60, "train": 280}
# Share of the families that hold plain verbs only: those are no challenge.
_PLAIN_SHARE = 0.3
LETTERS = "bcdfghjkmpqrtvwyz"
_MOST_TRIES = 30

Shape = tuple[Verb | None, tuple[Verb, ...]]
"""A condition or none, and the verbs of the steps."""
Argument = int | str | list[int]


class GeneratedProblem(TypedDict):
    """Holds a problem in MBPP's schema; `family` is ours."""

    task_id: int
    text: str
    code: str
    test_list: list[str]
    test_setup_code: str
    challenge_test_list: list[str]
    family: str


@lru_cache(maxsize=4096)
def _function_of(code: str, name: str) -> Callable[[Argument], Any]:
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    return namespace[name]


def value_of(code: str, name: str, argument: Argument) -> Any:
    """Call a generated function; None if it raises."""
    try:
        return _function_of(code, name)(argument)
    except Exception:
        return None


def draw_argument(kind: str, generator: random.Random) -> Argument:
    """Draw a small number, a short text without vowels, or a short list of digits."""
    if kind == "number":
        return generator.randint(2, 9)
    if kind == "text":
        return "".join(generator.sample(LETTERS, generator.randint(4, 5)))
    return generator.sample(range(1, 10), generator.randint(4, 5))


def draw_program(shape: Shape, generator: random.Random) -> Program:
    """Draw the numbers and the name of a program of a shape."""
    condition, verbs = shape

    def step(verb: Verb) -> Step:
        return Step(verb, generator.choice(verb.constants) if verb.constants else None)

    steps = tuple(step(verb) for verb in verbs)
    return Program(generator.choice(NAMES), steps, step(condition) if condition else None)


def draw_arguments(
    program: Program, meaning: tuple[int, ...], generator: random.Random
) -> list[Argument]:
    """Draw three different arguments that tell the meaning from every other one.

    Raises:
        ValueError: there are none (two meanings are the same program, or the value is trivial).
    """
    others = [program.code(other) for other in program.meanings() if other != meaning]
    if program.condition:
        others += _without_a_branch(program, meaning)
    best_score, best = -1, []
    for _ in range(_MOST_TRIES):
        arguments = [draw_argument(program.kind, generator) for _ in range(TESTS)]
        values = [value_of(program.code(meaning), program.name, x) for x in arguments]
        if any(value in (None, "", []) for value in values) or len({*map(repr, arguments)}) < TESTS:
            continue
        differs = [
            [value_of(code, program.name, x) != y for x, y in zip(arguments, values, strict=True)]
            for code in others
        ]
        score = sum(map(sum, differs))
        if all(any(row) for row in differs) and score > best_score:
            best_score, best = score, arguments
            if score == TESTS * len(others):
                break
    if best_score < 0:
        raise ValueError(f"no arguments tell the meanings of {program.text!r} apart")
    return best


def _without_a_branch(program: Program, meaning: tuple[int, ...]) -> list[str]:
    """Leave out a branch of a program: arguments that tell these apart reach both branches."""
    code = program.code(meaning)
    lines = code.splitlines(keepends=True)
    symbol = SYMBOLS[program.kind]
    without = [[*lines[:at], f"        {symbol} = None\n", *lines[at + 1 :]] for at in (2, 4)]
    return ["".join(changed) for changed in without]


def asserts(program: Program, code: str, arguments: list[Argument]) -> list[str]:
    """Write the tests of a solution."""
    return [
        f"assert {program.name}({x!r}) == {value_of(code, program.name, x)!r}" for x in arguments
    ]


def _problem(program: Program, task_id: int, generator: random.Random) -> GeneratedProblem:
    code = program.code(program.actual)
    arguments = draw_arguments(program, program.actual, generator)
    return {
        "task_id": task_id,
        "text": program.text,
        "code": code,
        "test_list": asserts(program, code, arguments),
        "test_setup_code": "",
        "challenge_test_list": [],
        "family": program.family,
    }


def is_plain(shape: Shape) -> bool:
    """Tell whether nothing in it has to be discovered."""
    return not any(verb.invented for verb in (shape[0], *shape[1]) if verb)


def shapes_by_split(generator: random.Random) -> dict[str, list[Shape]]:
    """Divide the families among the splits; single verbs are for training."""
    single = [shape for shape in families() if shape[0] is None and len(shape[1]) == 1]
    rest = [shape for shape in families() if shape not in single]
    rest = [s for s in rest if not is_plain(s) or generator.random() < _PLAIN_SHARE]
    generator.shuffle(rest)
    test, validation = SIZES["test"], SIZES["validation"]
    return {
        "test": rest[:test],
        "validation": rest[test : test + validation],
        "train": [*single, *rest[test + validation :]],
    }


def _drawn(seed: int = SEED) -> list[tuple[Program, GeneratedProblem]]:
    """Draw all programs with their problems in the order of task ids; the same in every run."""
    generator = random.Random(seed)
    drawn = []
    for split, shapes in shapes_by_split(generator).items():
        texts: set[str] = set()
        for shape in itertools.cycle(shapes):
            if len(texts) == SIZES[split]:
                break
            program = draw_program(shape, generator)
            if program.text in texts:
                continue
            with contextlib.suppress(ValueError):
                task_id = SPLITS[split][0] + len(texts)
                drawn.append((program, _problem(program, task_id, generator)))
                texts.add(program.text)
    return drawn


def problem_set(seed: int = SEED) -> list[GeneratedProblem]:
    """Generate all problems in the order of their task ids."""
    return [problem for _, problem in _drawn(seed)]


@lru_cache(maxsize=1)
def readings() -> dict[str, frozenset[str]]:
    """List the code of every problem under each meaning of its verbs, by the problem's text."""
    return {
        program.text: frozenset(program.code(meaning) for meaning in program.meanings())
        for program, _ in _drawn()
    }


def json_lines(problems: list[GeneratedProblem]) -> str:
    """Write the problems as JSON lines."""
    return "".join(json.dumps(problem, ensure_ascii=False) + "\n" for problem in problems)


def main() -> None:
    """Write the problem set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="file to write, JSON lines")
    chosen = parser.parse_args()
    problems = problem_set()
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json_lines(problems), encoding="utf-8")
    print(f"DONE {len(problems)} problems to {chosen.out}")


if __name__ == "__main__":
    main()
