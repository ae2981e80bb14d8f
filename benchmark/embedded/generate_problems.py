"""Generates the embedded problem set in MBPP's schema and with MBPP's ranges of task ids.

    python -m sdpo.benchmark.embedded.generate_problems fixtures/embedded/problems.jsonl

Splits are by family (`Program.family`): a combination of verbs is in one split only, and each verb
occurs in training. A test problem therefore asks for a new combination of verbs whose meaning can
be learnt from the training problems.
"""

import argparse
import json
import random
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from sdpo.benchmark.embedded.language import NAMES, SYMBOLS, Program, Step, Verb, families
from sdpo.benchmark.problems.dataset import SPLITS

SEED = 20260112
TESTS = 3
SIZES = {"test": 180, "validation": 60, "train": 280}
# Share of the families that hold plain verbs only: those are no challenge.
PLAIN_SHARE = 0.3
LETTERS = "bcdfghjkmpqrtvwyz"

Shape = tuple[Verb | None, tuple[Verb, ...]]


@lru_cache(maxsize=4096)
def function_of(code: str, name: str) -> Callable[[Any], Any]:
    """The function that a generated program defines."""
    space: dict[str, Any] = {}
    exec(code, space)
    return space[name]


def value_of(code: str, name: str, argument: Any) -> Any:
    """What a generated function returns; None if it raises."""
    try:
        return function_of(code, name)(argument)
    except Exception:
        return None


def draw_argument(kind: str, generator: random.Random) -> Any:
    """A small number, a short text without vowels, or a short list of digits."""
    if kind == "number":
        return generator.randint(2, 9)
    if kind == "text":
        return "".join(generator.sample(LETTERS, generator.randint(4, 5)))
    return generator.sample(range(1, 10), generator.randint(4, 5))


def draw_program(shape: Shape, generator: random.Random) -> Program:
    """A program of a shape with numbers and a name drawn at random."""
    test, verbs = shape

    def step(verb: Verb) -> Step:
        return Step(verb, generator.choice(verb.constants) if verb.constants else None)

    steps = tuple(step(verb) for verb in verbs)
    return Program(generator.choice(NAMES), steps, step(test) if test else None)


def draw_arguments(
    program: Program, meaning: tuple[int, ...], generator: random.Random
) -> list[Any]:
    """Three different arguments that tell the meaning from every other one.

    Raises:
        ValueError: there are none (two meanings are the same program, or the value is trivial).
    """
    others = [program.code(other) for other in program.meanings() if other != meaning]
    if program.condition:
        others += branches(program, meaning)
    best: tuple[int, list[Any]] = (-1, [])
    for _ in range(30):
        arguments = [draw_argument(program.kind, generator) for _ in range(TESTS)]
        values = [value_of(program.code(meaning), program.name, one) for one in arguments]
        shown = [repr(one) for one in arguments]
        if None in values or "" in values or [] in values or len(set(shown)) < TESTS:
            continue
        table = [
            [value_of(code, program.name, one) != v for one, v in zip(arguments, values)]  # noqa: B905
            for code in others
        ]
        if all(any(row) for row in table):
            score = sum(map(sum, table))
            best = max(best, (score, arguments), key=lambda entry: entry[0])
            if score == TESTS * len(others):
                break
    if best[0] < 0:
        raise ValueError(f"no arguments tell the meanings of {program.text!r} apart")
    return best[1]


def branches(program: Program, meaning: tuple[int, ...]) -> list[str]:
    """Programs that leave out a branch: arguments that tell them apart reach both branches."""
    code = program.code(meaning)
    lines = code.splitlines(keepends=True)
    symbol = SYMBOLS[program.kind]
    without = [[*lines[:at], f"        {symbol} = None\n", *lines[at + 1 :]] for at in (2, 4)]
    return ["".join(one) for one in without]


def asserts(program: Program, code: str, arguments: list[Any]) -> list[str]:
    """The tests of a solution."""
    return [
        f"assert {program.name}({one!r}) == {value_of(code, program.name, one)!r}"
        for one in arguments
    ]


def problem(program: Program, generator: random.Random) -> dict[str, Any]:
    """A problem in MBPP's schema, without its task id; `family` is ours."""
    code = program.code(program.actual)
    arguments = draw_arguments(program, program.actual, generator)
    return {
        "text": program.text,
        "code": code,
        "test_list": asserts(program, code, arguments),
        "test_setup_code": "",
        "challenge_test_list": [],
        "family": program.family,
    }


def is_plain(shape: Shape) -> bool:
    """Whether nothing in it has to be discovered."""
    return not any(verb.invented for verb in (shape[0], *shape[1]) if verb)


def shapes_by_split(generator: random.Random) -> dict[str, list[Shape]]:
    """Which families belong to which split; single verbs are for training."""
    single = [shape for shape in families() if shape[0] is None and len(shape[1]) == 1]
    rest = [shape for shape in families() if shape not in single]
    rest = [s for s in rest if not is_plain(s) or generator.random() < PLAIN_SHARE]
    generator.shuffle(rest)
    test, validation = SIZES["test"], SIZES["validation"]
    return {
        "test": rest[:test],
        "validation": rest[test : test + validation],
        "train": [*single, *rest[test + validation :]],
    }


def drawn(seed: int = SEED) -> list[tuple[Program, dict[str, Any]]]:
    """All programs with their problems in the order of task ids; the same in every run."""
    generator = random.Random(seed)
    found = []
    for split, shapes in shapes_by_split(generator).items():
        first, texts, place = SPLITS[split][0], set(), 0
        while len(texts) < SIZES[split]:
            program = draw_program(shapes[place % len(shapes)], generator)
            place += 1
            if program.text in texts:
                continue
            try:
                one = problem(program, generator)
            except ValueError:
                continue
            found.append((program, {"task_id": first + len(texts), **one}))
            texts.add(program.text)
    return found


def problem_set(seed: int = SEED) -> list[dict[str, Any]]:
    """All problems in the order of their task ids."""
    return [one for _, one in drawn(seed)]


@lru_cache(maxsize=1)
def readings() -> dict[str, frozenset[str]]:
    """The code of every problem under each meaning of its verbs, by the problem's text."""
    return {
        program.text: frozenset(program.code(meaning) for meaning in program.meanings())
        for program, _ in drawn()
    }


def lines(problems: list[dict[str, Any]]) -> str:
    """The problems as JSON lines."""
    return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in problems)


def main() -> None:
    """Write the problem set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="file to write, JSON lines")
    chosen = parser.parse_args()
    problems = problem_set()
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(lines(problems), encoding="utf-8")
    print(f"DONE {len(problems)} problems to {chosen.out}")


if __name__ == "__main__":
    main()
