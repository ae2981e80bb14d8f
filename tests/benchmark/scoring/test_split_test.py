"""The rewritten test asks the submission for its part and decides the rest itself."""

import ast
import builtins

import pytest

from sdpo.benchmark.scoring.split_test import names_for_call, names_loaded_in, split_test

_BUILTINS = frozenset(vars(builtins))


@pytest.mark.parametrize(
    ("test", "source", "expressions"),
    [
        ("assert f(3) == 4", "__compare__('Eq', __ask__(0, {}), 4)", ("f(3)",)),
        ("assert 4 == f(3)", "__compare__('Eq', __ask__(0, {}), 4)", ("f(3)",)),
        ("assert f(3) in [4]", "__compare__('In', __ask__(0, {}), [4])", ("f(3)",)),
        ("assert not f(3)", "__truth__(not __ask__(0, {}))", ("f(3)",)),
        ("assert 2 < f(3) < 4", "__truth__(2 < __ask__(0, {}) < 4)", ("f(3)",)),
        (
            "assert f(1) == g(2)",
            "__compare__('Eq', __ask__(0, {}), __ask__(1, {}))",
            ("f(1)", "g(2)"),
        ),
        ("x = 3\nassert f(x) == x", "x = 3\n__compare__('Eq', __ask__(0, {'x': x}), x)", ("f(x)",)),
        ("assert f(1).lower() == 'a'", "__compare__('Eq', __ask__(0, {}).lower(), 'a')", ("f(1)",)),
        ("assert f(1).x == 2", "__compare__('Eq', __ask__(0, {}), 2)", ("f(1).x",)),
        (
            "assert math.floor(f(1)) == 2",
            "__compare__('Eq', math.floor(__ask__(0, {})), 2)",
            ("f(1)",),
        ),
    ],
)
def test_each_call_of_the_submission_becomes_a_request(
    test: str, source: str, expressions: tuple[str, ...]
) -> None:
    program = split_test(ast.parse(test), _BUILTINS, frozenset())
    assert program.source == source
    assert program.expressions == expressions
    assert program.modules == (("math",) if "math" in test else ())


def test_the_submission_defines_what_neither_test_nor_imports_bind() -> None:
    tree = ast.parse("x = 1\nassert f(x) == g(isclose, h.a)")
    program = split_test(tree, _BUILTINS | {"isclose"}, frozenset({"h", "isclose"}))
    assert program.names == ("f", "g")


def test_a_call_is_the_submissions_unless_its_name_is_the_tests() -> None:
    def names(test: str) -> tuple[str, ...] | None:
        tree = ast.parse(test)
        call = next(node for node in ast.walk(tree) if isinstance(node, ast.Call))
        return names_for_call(tree, call, _BUILTINS, frozenset())

    assert names("f(1)") == ("f",)
    assert names("S().go(1)") == ("S",)
    assert names("len(f)") is None
    assert names("math.sqrt(4)") is None
    assert names("f = 1\nf(1)") is None


def test_only_names_that_are_read_are_loaded() -> None:
    assert names_loaded_in(ast.parse("a = b\nc.d = e(f=g)")) == {"b", "c", "e", "g"}
