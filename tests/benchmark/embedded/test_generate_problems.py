"""The embedded problem set: as generated, no leakage between splits, references that pass."""

import json
import random
import re
from collections import defaultdict
from pathlib import Path

import pytest

from sdpo.benchmark.embedded import generate_problems, lessons
from sdpo.benchmark.embedded.language import VERBS, Program, Step
from sdpo.benchmark.problems.case import Case
from sdpo.benchmark.problems.dataset import load_file
from sdpo.benchmark.scoring.check_references import check_references
from sdpo.benchmark.scoring.executor import Executor

FILE = Path(__file__).parents[3] / "fixtures" / "embedded" / "problems.jsonl"
RECORDS = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]


def by_split(records):
    found = defaultdict(list)
    for problem in load_file(FILE).problems:
        found[problem.split].append(problem.task_id)
    ids = {task: split for split, tasks in found.items() for task in tasks}
    rows = defaultdict(list)
    for record in records:
        rows[ids[record["task_id"]]].append(record)
    return rows


def leaks(records):
    """Families and texts that stand in more than one split."""
    rows = by_split(records)
    found = []
    for key in ("family", "text"):
        values = {split: {record[key] for record in own} for split, own in rows.items()}
        names = sorted(values)
        for place, one in enumerate(names):
            found += [(key, x) for two in names[place + 1 :] for x in values[one] & values[two]]
    return found


def test_the_file_is_what_the_generator_writes():
    assert generate_problems.json_lines(generate_problems.problem_set()) == FILE.read_text(
        encoding="utf-8"
    )


def test_sizes():
    sizes = {split: len(rows) for split, rows in by_split(RECORDS).items()}
    assert sizes == generate_problems.SIZES
    assert sizes["test"] >= 150


def test_nothing_of_a_split_is_in_another():
    assert leaks(RECORDS) == []
    moved = [dict(record) for record in RECORDS]
    moved[0]["family"] = by_split(RECORDS)["train"][0]["family"]
    assert leaks(moved) != []


def test_test_solutions_do_not_occur_in_training():
    rows = by_split(RECORDS)

    def body(record):
        return record["family"], record["code"].split("\n", 1)[1]

    assert not {body(r) for r in rows["train"]} & {body(r) for r in rows["test"]}


def test_every_verb_can_be_learnt_from_training():
    words = {word for record in by_split(RECORDS)["train"] for word in record["family"].split()}
    assert {verb.word for verb in VERBS} <= words


def test_pre_training_never_meets_a_held_out_family():
    rows = by_split(RECORDS)
    held_out = {record["family"] for split in ("test", "validation") for record in rows[split]}
    generator, shapes = random.Random(0), lessons.lesson_shapes()
    for shape in shapes:
        assert generate_problems.draw_program(shape, generator).family not in held_out


def test_references_pass():
    with Executor(1) as executor:
        assert check_references(executor, load_file(FILE).only("validation")) == []


@pytest.mark.slow
def test_all_references_pass():
    with Executor(2) as executor:
        assert check_references(executor, load_file(FILE)) == []


def test_every_other_meaning_fails():
    """The tests of a problem fix its meaning: each other program fails at least one."""
    generator, table = random.Random(3), {verb.word: verb for verb in VERBS}
    steps = (Step(table["brill"]), Step(table["trunk"], 2))
    program = Program("solve", steps)
    arguments = generate_problems.draw_arguments(program, program.actual, generator)
    tests = tuple(generate_problems.asserts(program, program.code(program.actual), arguments))
    others = [m for m in program.meanings() if m != program.actual]
    assert len(others) == 11
    cases = [Case(0, program.code(m), tests, "", "") for m in others]
    with Executor(1) as executor:
        assert {result.status for result in executor.map(cases)} == {"fail"}


def test_readings_are_the_solution_and_its_misunderstandings():
    known = generate_problems.readings()
    assert all(record["code"] in known[record["text"]] for record in RECORDS)
    (record,) = [r for r in RECORDS if r["family"] == "list: plim"][:1]
    ((name, number),) = re.findall(r"function (\w+) .* by (\d)", record["text"])
    assert known[record["text"]] == {
        f"def {name}(a):\n    a = [v {sign} {number} for v in a]\n    return a\n" for sign in "+-*"
    }
