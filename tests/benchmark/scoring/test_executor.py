"""Every program of the catalogue gets its verdict, and none disturbs the next."""

import platform
import re

import pytest

from sdpo.benchmark.problems.case import Result
from sdpo.benchmark.scoring.executor import Executor
from sdpo.benchmark.scoring.feedback import MAX_FEEDBACK
from tests.helpers.programs.attempts import REFUSED
from tests.helpers.programs.honest import BROKEN, RIGHT, WRONG, Program
from tests.helpers.programs.hostile import CHEATS, ENDLESS, NOISY
from tests.helpers.programs.protocol import PROTOCOL, STALLING
from tests.helpers.spread import one_in

_PLAIN = RIGHT["plain"]
OTHERS = WRONG | BROKEN | CHEATS | PROTOCOL


def score(executor: Executor, program: Program) -> Result:
    return executor.submit(program.case()).result()


def check_feedback(result: Result) -> None:
    feedback = result.feedback
    feedback.encode("utf-8")
    assert len(feedback) <= MAX_FEEDBACK
    assert feedback.replace("\n", "").isprintable()
    assert (feedback == "") == (result.status == "pass")
    assert "/tmp/" not in feedback
    assert "sdpo-mbpp-" not in feedback
    assert re.search(r"0x[0-9a-f]{6}", feedback) is None


def named(*tables: dict[str, Program]) -> list:
    return [pytest.param(p, id=name) for table in tables for name, p in table.items()]


@pytest.mark.parametrize("name", [*one_in(2, RIGHT), *OTHERS])
def test_verdict(executor: Executor, name: str) -> None:
    program = (RIGHT | OTHERS)[name]
    servers = set(executor._servers)
    result = score(executor, program)
    assert result.status in program.statuses, result.feedback
    assert executor._servers == servers, "a fork server had to be replaced"
    assert result.total == len(program.tests)
    assert (result.passed == result.total) == (result.status == "pass")
    check_feedback(result)


@pytest.mark.skipif(
    platform.machine() != "x86_64", reason="the attempts use numbers of x86-64 system calls"
)
@pytest.mark.parametrize("program", named(REFUSED))
def test_attempt_is_refused(executor: Executor, program: Program) -> None:
    result = score(executor, program)
    assert result.status == "pass", result.feedback


def test_endless_programs_are_stopped_at_the_limit() -> None:
    limit = 1.0
    programs = {**ENDLESS, **STALLING}
    with Executor(len(programs) // 2, timeout=limit) as impatient:
        results = list(impatient.map([program.case() for program in programs.values()]))
        assert impatient.submit(_PLAIN.case()).result().status == "pass"
    for (name, program), result in zip(programs.items(), results, strict=True):
        assert result.status in program.statuses, name
        assert result.seconds < limit + 2, name
        check_feedback(result)


@pytest.mark.parametrize("program", named(NOISY))
def test_noise_does_not_reach_the_next(executor: Executor, program: Program) -> None:
    servers = set(executor._servers)
    result = score(executor, program)
    assert result.status in program.statuses
    after = [score(executor, _PLAIN) for _ in range(executor.workers)]
    assert [r.status for r in after] == ["pass"] * executor.workers
    assert executor._servers == servers, "a fork server had to be replaced"


def test_tests_are_judged_singly(executor: Executor) -> None:
    completion = (
        "import os\ndef add(a, b):\n    if a == 1:\n        os._exit(0)\n"
        "    if a == 5:\n        raise ValueError\n    return a + b"
    )
    tests = (
        "assert add(1, 2) == 3",
        "assert add(2, 2) == 4",
        "assert add(5, 2) == 7",
        "assert add(2, 3) == 6",
        "assert add(3, 3) == 6",
    )
    for order in (tests, tests[::-1]):
        result = score(executor, Program(completion, (), order))
        assert (result.status, result.passed, result.total) == ("fail", 2, 5)


def test_an_exit_between_calls_takes_no_answer_back(executor: Executor) -> None:
    """Requests are sent ahead: what ends the process in one call leaves the others as they are."""
    exits = "import os\nseen = []\ndef add(a, b):\n    seen.append(a)\n    if len(seen) > 1:\n"
    exits += "        os._exit(0)\n    return a + b"
    assert score(executor, Program(exits, ())).status == "pass"
    thread = (
        "import os, threading, time\ndef leave():\n    time.sleep(0.02)\n    os._exit(0)\n"
        "def add(a, b):\n    threading.Thread(target=leave).start()\n"
        "    time.sleep(0.05 * (a == 5))\n    return a + b"
    )
    result = score(executor, Program(thread, ()))
    assert (result.status, result.passed) == ("fail", 2)


def test_requests_and_replies_of_any_size_do_not_block_each_other(executor: Executor) -> None:
    completion = "def size(text, n):\n    return text[:1] * n"
    tests = tuple(
        f"assert size({'x' * given!r}, {taken}) == {'x' * taken!r}"
        for given, taken in ((400_000, 1), (1, 400_000), (300_000, 300_000), (1, 1), (20_000, 9))
    )
    for order in (tests, tests[::-1], tests * 3):
        result = score(executor, Program(completion, (), order))
        assert (result.status, result.passed) == ("pass", len(order)), result.feedback
        assert result.seconds < 15


def test_a_hanging_test_leaves_the_others_their_chance() -> None:
    completion = "def add(a, b):\n    while a == 1:\n        pass\n    return a + b"
    tests = ("assert add(1, 2) == 3", "assert add(2, 2) == 4", "assert add(1, 3) == 4")
    with Executor(1, timeout=1) as executor:
        result = score(executor, Program(completion, (), tests))
    assert (result.status, result.passed) == ("timeout", 1)
    assert result.seconds < 3


def test_state_of_one_test_does_not_fail_another(executor: Executor) -> None:
    completion = "seen = []\ndef first(x):\n    seen.append(x)\n    return seen[0]"
    tests = tuple(f"assert first({i}) == {i}" for i in range(3))
    assert score(executor, Program(completion, (), tests)).passed == 3


def test_same_feedback_in_every_run(executor: Executor) -> None:
    completion = (
        "import random\nclass A:\n    pass\ndef add(a, b):\n"
        "    return [A(), {'x', 'y', 'z', str(random.random())}, id, object]"
    )
    program = Program(completion, ())
    texts = {score(executor, program).feedback for _ in range(4)}
    with Executor(1) as other:
        texts.add(score(other, program).feedback)
    assert len(texts) == 1


def test_unknown_test_shapes_never_pass_a_wrong_solution(executor: Executor) -> None:
    wrong = "def add(a, b):\n    return None"
    for test in (
        "assert add(1, 2) and True",
        "assert (lambda r: r == 3)(add(1, 2))",
        "assert add(1, 2) in (3, 4)",
        "assert f'{add(1, 2)}' == '3'",
        "assert [add(1, 2)][0] == 3",
        "assert {'a': add(1, 2)} == {'a': 3}",
        "assert (add(1, 2) if True else 3) == 3",
        "with open('x') as f:\n    assert add(1, 2) == 3",
        "def check(f):\n    assert f(1, 2) == 3\ncheck(add)",
        "while add(1, 2) != 3:\n    assert False",
    ):
        right = score(executor, Program("def add(a, b):\n    return a + b", (), (test,)))
        assert score(executor, Program(wrong, (), (test,))).status != "pass", test
        if not test.startswith(("with", "while")):
            assert right.status == "pass", (test, right.feedback)
