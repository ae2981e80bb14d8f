"""What of a test goes to the submission, and what stays outside."""

import pytest

from sdpo.benchmark.scoring.plan_tests import Equality, Plan, PlanError, plan_tests
from sdpo.benchmark.scoring.split_test import Program


def sent(planned: Plan) -> list[str]:
    """Every expression that the submission's process gets to see."""
    found: list[str] = []
    for test in planned.tests:
        if isinstance(test, Equality):
            found.append(test.expression)
        elif isinstance(test, Program):
            found += test.expressions
    return found


@pytest.mark.parametrize(
    ("test", "expressions"),
    [
        ("assert f(3) == 4", ["f(3)"]),
        ("assert 4 == f(3)", ["f(3)"]),
        ("assert f(g(1)) == 4", ["f(g(1))"]),
        ("assert f(1) == g(2)", ["f(1)", "g(2)"]),
        ("assert set(f(1)) == set([1])", ["f(1)"]),
        ("assert f(1).lower() == 'a'", ["f(1)"]),
        ("assert f(1)[0] == 2", ["f(1)"]),
        ("assert math.isclose(f(1), 0.5)", ["f(1)"]),
        ("assert f(1) == sys.getsizeof((1,))", ["f(1)"]),
        ("assert not f(1)", ["f(1)"]),
        ("assert f(1) and g(1)", ["f(1)", "g(1)"]),
        ("assert S().go(1) == 2", ["S().go(1)"]),
        ("assert S().items() == 2", ["S()"]),
        ("assert P(1).x == 2", ["P(1).x"]),
        ("assert all(f(i) == i * i for i in range(3))", ["f(i)"]),
        ("expected = [1]\nassert f(1) == expected", ["f(1)"]),
        ("assert sum(1, 2) == 3", ["sum(1, 2)"]),
        ("assert len(f(1)) == 3", ["f(1)"]),
        ("assert list(map(f, [1])) == [2]", ["f"]),
        ("assert f(lambda x: x + 1)(2) == 3", ["f(lambda x: x + 1)(2)"]),
        ("assert asyncio.run(f(1)) == 2", ["asyncio.run(f(1))"]),
    ],
)
def test_split(test: str, expressions: list[str]) -> None:
    planned = plan_tests((test,), "import asyncio")
    assert sent(planned) == expressions


def test_trusted_imports_stay_outside() -> None:
    planned = plan_tests(("assert Counter(f(1)) == Counter([2])",), "from collections import *")
    assert sent(planned) == ["f(1)"]


def test_names_of_the_setup_belong_to_the_submission() -> None:
    planned = plan_tests(("assert depth(root) == 2",), "", "root = Node(1)")
    assert sent(planned) == ["depth(root)"]
    assert planned.names == ("depth",)
    assert planned.setup == ""


def test_helpers_and_constants_of_a_plain_setup_stay_outside() -> None:
    setup = "LIMIT = 3\ndef near(a, b):\n    return abs(a - b) < 1e-6"
    planned = plan_tests(("assert near(f(1), LIMIT)",), "", setup)
    assert sent(planned) == ["f(1)"]
    assert planned.setup == setup


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ("assert f(1", "does not parse"),
        ("f(1)", "asserts nothing"),
        ("", "asserts nothing"),
        ("assert f(1) == '" + "x" * (1 << 20) + "'", "characters"),
        ("assert " + "(" * 5000, "does not parse"),
        ("assert f('\x00')", "does not parse"),
    ],
)
def test_tests_that_cannot_be_judged(test: str, message: str) -> None:
    (planned,) = plan_tests((test,)).tests
    assert isinstance(planned, PlanError)
    assert message in str(planned)


@pytest.mark.parametrize("field", ["test_imports", "test_setup_code"])
def test_malformed_surroundings_are_an_error(field: str) -> None:
    arguments = ("import (", "") if field == "test_imports" else ("", "x = (")
    with pytest.raises(PlanError, match=field):
        plan_tests(("assert f(1) == 2",), *arguments)
