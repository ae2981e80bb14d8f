"""Feedback says what failed and where, and is safe to put into a prompt."""

import os
import sys

import pytest

from sdpo.benchmark.problems.case import Case
from sdpo.benchmark.scoring import feedback
from sdpo.benchmark.scoring.executor import Executor

_TESTS = ("assert f(1) == 2", "assert f(2) == 3")


def told(executor: Executor, completion: str, *tests: str) -> str:
    return executor.submit(Case(0, completion, tests or _TESTS)).result().feedback


CASES = {
    "difference": (
        "def f(x):\n    return [x]",
        "0 of 2 tests passed.\nTest 1 failed: assert f(1) == 2\nExpected: 2\nActual: [1]\n"
        "Test 2 failed: assert f(2) == 3\nExpected: 3\nActual: [2]",
    ),
    "one failed": (
        "def f(x):\n    return 2",
        "1 of 2 tests passed.\nTest 2 failed: assert f(2) == 3\nExpected: 3\nActual: 2",
    ),
    "exception": (
        "def f(x):\n    y = x + 1\n    return {1: 2}[y + 1] if x > 1 else y",
        "1 of 2 tests passed.\nTest 2 failed: assert f(2) == 3\nKeyError: 4\n"
        "Line 3 of the submitted code: return {1: 2}[y + 1] if x > 1 else y",
    ),
    "syntax": (
        "import os\ndef f(x)\n    return 2",
        "0 of 2 tests passed.\nSyntaxError: expected ':'\nLine 2 of the submitted code: def f(x)",
    ),
    "while defined": (
        "x = 1\ny = x / 0\ndef f(x):\n    return 2",
        "0 of 2 tests passed.\nZeroDivisionError: division by zero\n"
        "Line 2 of the submitted code: y = x / 0",
    ),
    "missing": (
        "def g(x):\n    return 2",
        "0 of 2 tests passed.\nNameError: the submission does not define f",
    ),
    "exit": (
        "import os\ndef f(x):\n    os._exit(0)",
        "0 of 2 tests passed.\nTest 1 failed: assert f(1) == 2\nThe process ended before the call "
        "returned: it exited, crashed, or ran out of a limit.\nTest 2 failed: assert f(2) == 3\n"
        "The process ended before the call returned: it exited, crashed, or ran out of a limit.",
    ),
    "same look": (
        "def f(x):\n    class int_(float):\n        __repr__ = lambda s: '2'\n    return int_(7)",
        "0 of 2 tests passed.\nTest 1 failed: assert f(1) == 2\nExpected: 2\nActual: 7.0\n"
        "Test 2 failed: assert f(2) == 3\nExpected: 3\nActual: 7.0",
    ),
    "all passed": ("def f(x):\n    return x + 1", ""),
    "no code": ("Sorry.", "0 of 2 tests passed.\nThe completion contains no code."),
}


@pytest.mark.parametrize(("completion", "expected"), CASES.values(), ids=CASES)
def test_text(executor: Executor, completion: str, expected: str) -> None:
    assert told(executor, completion) == expected


def test_what_calls_returned_where_there_is_no_expected_value(executor: Executor) -> None:
    text = told(executor, "def f(x):\n    return 0.25", "assert math.isclose(f(1), 0.5)")
    assert "The assertion is false.\nf(1) returned 0.25" in text


def test_sides_of_a_computed_comparison(executor: Executor) -> None:
    text = told(executor, "def f(x):\n    return [3, 1]", "assert {1, 2} == set(f(1))")
    assert "Expected: {1, 2}\nActual: {1, 3}" in text


HOSTILE = {
    "control sequences": "def f(x):\n    return '\\x1b[2J\\x07\\x00\\r\\u202e\\u2028'",
    "control sequences in a message": "def f(x):\n    raise ValueError('\\x1b[31m\\n\\x00\\u202e')",
    "surrogates": "def f(x):\n    return '\\ud800\\udfff'",
    "surrogates in a message": "def f(x):\n    raise ValueError('\\ud800')",
    "odd type name": "def f(x):\n    raise type('\\x1b[31m{0}\\n', (Exception,), {})('x')",
    "odd object name": "def f(x):\n    return type('\\x1b[31m' * 999, (), {})()",
    "long message": "def f(x):\n    raise ValueError('x' * 10**6)",
    "long value": "def f(x):\n    return list(range(10**5))",
    "long text": "def f(x):\n    return 'ab' * 10**6",
    "long line": "def f(x):\n    return 1 / 0" + " + 1" * 10_000,
    "big integer": "def f(x):\n    return 10**6000",
    "big integer in a deque": (
        "import collections\ndef f(x):\n    return collections.deque([10**6000])"
    ),
    "address": "def f(x):\n    raise ValueError(object())",
    "nested": "def f(x):\n    v = 1\n    for _ in range(90):\n        v = {'k': [v]}\n    return v",
    "paths": (
        "import os, sys\ndef f(x):\n    return [os.getcwd(), os.__file__, sys.prefix, sys.path, "
        "'/etc/passwd', '/root', os.path.abspath('a')]"
    ),
    "path in a message": "def f(x):\n    open('/etc/shadow')",
    "path in a file name": "def f(x):\n    raise ValueError(__import__('os').getcwd() + '/x')",
}


@pytest.mark.parametrize("completion", HOSTILE.values(), ids=HOSTILE)
def test_safe(executor: Executor, completion: str) -> None:
    text = told(executor, completion)
    assert 0 < len(text) <= feedback.MAX_FEEDBACK
    assert text.encode("utf-8").decode() == text
    assert text.replace("\n", "").isprintable()
    assert len(text.split("\n")) <= 9
    for path in ("/tmp", "/etc/", "/root", sys.prefix, sys.base_prefix, os.getcwd()):
        assert path not in text
    assert text == told(executor, completion)


def test_braces_survive_templates(executor: Executor) -> None:
    text = told(executor, "def f(x):\n    return {'a': {x}, '{feedback}': '{{0}}'}")
    assert "{'a': {1}, '{feedback}': '{{0}}'}" in text
    template = "<{feedback}>"
    assert template.format(feedback=text) == f"<{text}>"


def test_many_failures_are_cut_with_a_count(executor: Executor) -> None:
    tests = tuple(f"assert f({i}) == {'x' * 100!r}" for i in range(50))
    text = told(executor, "def f(x):\n    return 0", *tests)
    assert len(text) <= feedback.MAX_FEEDBACK
    assert text.endswith("more not shown)")
    assert text.startswith("0 of 50 tests passed.\nTest 1 failed")


def test_paths_of_the_test_itself_are_kept(executor: Executor) -> None:
    text = told(executor, "def f(x):\n    return '/usr/b'", "assert f('/usr/a') == '/usr/a'")
    assert "Expected: '/usr/a'" in text
    assert "'<path>'" in text
