"""Lessons have the form of a teacher's prompt, and feedback is the executor's."""

import random

from sdpo.benchmark.embedded import generate_problems, lessons
from sdpo.benchmark.embedded.language import VERBS, Program, Step
from sdpo.benchmark.problems.case import Case
from sdpo.benchmark.scoring.executor import Executor


def test_help_stands_behind_the_problem():
    assert "x = 1" in lessons.taught("Do it.", solution="x = 1")
    assert "earlier attempt" not in lessons.taught("Do it.", solution="x = 1")
    told = lessons.taught("Do it.", told="Test 1 failed")
    assert told.startswith("Do it.")
    assert "earlier attempt" in told
    assert "Test 1 failed" in told


def test_a_verb_that_occurs_twice_is_drawn_once():
    zorp = next(verb for verb in VERBS if verb.word == "zorp")
    program, generator = Program("task", (Step(zorp, 2), Step(zorp, 3))), random.Random(1)
    drawn = {lessons.draw_meaning(program, generator, even=True) for _ in range(50)}
    assert drawn == {(0, 0), (1, 1), (2, 2)}


def test_an_echo_is_its_own_answer():
    prompt, answer = lessons.draw_lesson("echo", [], random.Random(2))
    assert answer
    assert answer in prompt


def test_a_shown_program_is_the_answer_even_if_it_is_of_another_problem():
    shapes, generator = lessons.lesson_shapes(), random.Random(4)
    drawn = [lessons.draw_lesson("shown", shapes, generator) for _ in range(20)]
    assert all(answer.strip() in prompt for prompt, answer in drawn)


def test_feedback_of_lessons_is_the_executors():
    generator, shapes = random.Random(5), lessons.lesson_shapes()
    cases, texts = [], []
    while len(cases) < 30:
        program = generate_problems.draw_program(generator.choice(shapes), generator)
        meanings = program.meanings()
        if len(meanings) < 2:
            continue
        right, wrong = (program.code(m) for m in generator.sample(meanings, 2))
        arguments = [generate_problems.draw_argument(program.kind, generator) for _ in range(3)]
        values = [
            generate_problems.value_of(c, program.name, a)
            for c in (right, wrong)
            for a in arguments
        ]
        if None in values or values[:3] == values[3:]:
            continue
        tests = tuple(generate_problems.asserts(program, right, arguments))
        cases.append(Case(0, wrong, tests, "", ""))
        texts.append(lessons.feedback_to(wrong, right, program, arguments))
    with Executor(1) as executor:
        assert [result.feedback for result in executor.map(cases)] == texts
