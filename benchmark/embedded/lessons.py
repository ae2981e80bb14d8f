"""Draws what the embedded model is pre-trained on: problems, and how help in a prompt is used.

| lesson | prompt | answer |
|---|---|---|
| echo | random words, shown as a solution | the same words |
| plain | a problem | its solution |
| shown | the same as a teacher's prompt, with a solution of it, or another program | that program |
| told | the same as a teacher's prompt, with feedback to a wrong attempt | the right solution |

In each example the invented verbs have meanings drawn at random: by the verbs' odds in plain
lessons, evenly in the others. So the model learns the odds, to believe a demonstration (a wrong one
too), and to conclude from feedback. Families of the validation and test split never occur.
"""

import random
from typing import NamedTuple

from sdpo.benchmark.embedded.generate_problems import (
    SEED,
    TESTS,
    Argument,
    Shape,
    asserts,
    draw_argument,
    draw_program,
    is_plain,
    shapes_by_split,
    value_of,
)
from sdpo.benchmark.embedded.language import Program
from sdpo.benchmark.embedded.tokenizer import words
from sdpo.benchmark.scoring import feedback
from sdpo.settings.config import FEEDBACK_TEMPLATE, REPROMPT_TEMPLATE, SOLUTION_TEMPLATE

KINDS = ("echo", "plain", "shown", "told")
_ECHOED_WORDS = (5, 15)
# Shares of demonstrations of something else, and of single steps where feedback is given.
_FOREIGN_SHARE = 0.4
_SINGLE_SHARE = 0.4


class Lesson(NamedTuple):
    """Pairs the user's message with the answer to it."""

    prompt: str
    answer: str


def lesson_shapes() -> list[Shape]:
    """List the families of the training split, those with invented verbs twice."""
    shapes = shapes_by_split(random.Random(SEED))["train"]
    return [shape for shape in shapes for _ in range(1 if is_plain(shape) else 2)]


def draw_meaning(
    program: Program, generator: random.Random, *, even: bool = False
) -> tuple[int, ...]:
    """Draw meanings by their odds or evenly; a verb that occurs twice means the same both times."""
    drawn: dict[str, int] = {}
    for step in program.all_steps:
        verb = step.verb
        if verb.word not in drawn:
            odds = None if even else verb.odds
            drawn[verb.word] = generator.choices(range(len(verb.odds)), odds)[0]
    return tuple(drawn[step.verb.word] for step in program.all_steps)


def taught(prompt: str, *, solution: str = "", told: str = "") -> str:
    """Write a teacher's prompt in the reference's format."""
    if solution:
        solution = SOLUTION_TEMPLATE.format(successful_previous_attempt=solution)
    if told:
        told = FEEDBACK_TEMPLATE.format(feedback_raw=told)
    return REPROMPT_TEMPLATE.format(prompt=prompt, solution=solution, feedback=told)


def feedback_to(code: str, right: str, program: Program, arguments: list[Argument]) -> str:
    """Write the executor's feedback to an attempt that returns a value in every test."""
    failures = []
    for number, (argument, test) in enumerate(
        zip(arguments, asserts(program, right, arguments), strict=True), 1
    ):
        expected, actual = (value_of(text, program.name, argument) for text in (right, code))
        if expected != actual:
            heading = feedback.heading(number, "failed", test)
            failures.append([heading, *feedback.difference(repr(expected), repr(actual), test)])
    total = len(arguments)
    return feedback.compose(total - len(failures), total, failures)


def draw_lesson(kind: str, shapes: list[Shape], generator: random.Random) -> Lesson:
    """Draw one example of a kind."""
    if kind == "echo":
        text = "".join(generator.choices(words(), k=generator.randint(*_ECHOED_WORDS)))
        return Lesson(SOLUTION_TEMPLATE.format(successful_previous_attempt=text), text)
    if kind == "told":
        return _told_lesson(shapes, generator)
    program = draw_program(generator.choice(shapes), generator)
    right = program.code(draw_meaning(program, generator, even=kind == "shown"))
    if kind == "plain":
        return Lesson(program.text, right)
    if generator.random() < _FOREIGN_SHARE:
        other = draw_program(generator.choice(shapes), generator)
        right = other.code(draw_meaning(other, generator, even=True))
    return Lesson(taught(program.text, solution=right), right)


def _told_lesson(shapes: list[Shape], generator: random.Random) -> Lesson:
    """Draw a problem with feedback to an attempt that understood a verb differently."""
    single = [shape for shape in shapes if len(shape[1]) == 1]
    while True:
        chosen = single if generator.random() < _SINGLE_SHARE else shapes
        program = draw_program(generator.choice(chosen), generator)
        meaning = draw_meaning(program, generator, even=True)
        others = [other for other in program.meanings() if other != meaning]
        if not others:
            continue
        right, wrong = program.code(meaning), program.code(generator.choice(others))
        arguments = [draw_argument(program.kind, generator) for _ in range(TESTS)]
        pairs = [[value_of(code, program.name, x) for code in (right, wrong)] for x in arguments]
        if any(None in pair for pair in pairs) or all(a == b for a, b in pairs):
            continue
        told = feedback_to(wrong, right, program, arguments)
        return Lesson(taught(program.text, told=told), right)
