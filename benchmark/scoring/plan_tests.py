"""Plans the tests of a case: what of each goes to the submission, and who decides.

A test `assert CALL == LITERAL` is an `Equality`, which the harness decides from the call's value.
Any other becomes a `Program` for the tests process (see `split_test`).
"""

import ast
import builtins
import dataclasses
import functools
import importlib
from collections.abc import Iterable
from typing import Any

from sdpo.benchmark.scoring.split_test import (
    TRUSTED_MODULES,
    Program,
    names_bound_in,
    names_for_call,
    names_loaded_in,
    split_test,
)

_BUILTINS = frozenset(vars(builtins))
# Longer tests are refused: Python's parser takes memory in proportion to the text.
_MAX_CHARACTERS = 1 << 20
_NOT_LITERAL = (ValueError, TypeError, SyntaxError, MemoryError, RecursionError)


class PlanError(ValueError):
    """A test that cannot be decided: it does not parse, or asserts nothing."""


@dataclasses.dataclass(frozen=True)
class Equality:
    """Holds a test `assert CALL == LITERAL`; `names` are those that the submission must define."""

    expression: str
    expected: Any
    names: tuple[str, ...]

    def program(self) -> Program:
        """Write the same test for the tests process."""
        source = f"__compare__('Eq', __ask__(0, {{}}), {self.expected!r})"
        return Program(source, (self.expression,), (), self.names)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Holds all tests of a case.

    `tests` holds a `PlanError` where a test cannot be decided. `names` are those that the
    submission should define. `imports` and `setup` are the code for the tests process, `setup`
    being empty where it needs the submission.
    """

    tests: tuple[Equality | Program | PlanError, ...]
    names: tuple[str, ...]
    imports: str
    setup: str


# In training the same tests come with every completion of a group.
@functools.lru_cache(maxsize=256)
def plan_tests(tests: tuple[str, ...], imports: str = "", setup: str = "") -> Plan:
    """Plan the tests of one case.

    Args:
        tests: Source of each test.
        imports: The case's `test_imports` as one text.
        setup: The case's `test_setup_code`.

    Raises:
        PlanError: If `imports` or `setup` do not parse.
    """
    trees = [_parse_test(test) for test in tests]
    import_tree = _parse(imports, "test_imports")
    imported = _imported(import_tree)
    setup_tree = _parse(setup, "test_setup_code")
    set_up = names_bound_in(setup_tree)
    bound = set_up | names_bound_in(import_tree)
    helpers = _helpers(setup_tree, imported)
    parsed = [tree for tree in trees if isinstance(tree, ast.Module)]
    trusted = ((_BUILTINS | imported) - set_up | helpers) - _builtin_under_test(parsed, bound)
    planned = tuple(
        tree if isinstance(tree, PlanError) else _planned(tree, test.strip(), trusted, bound)
        for tree, test in zip(trees, tests, strict=True)
    )
    names = {name for test in planned if not isinstance(test, PlanError) for name in test.names}
    return Plan(planned, tuple(sorted(names)), imports, setup if helpers else "")


def _parse(source: str, what: str) -> ast.Module:
    if len(source) > _MAX_CHARACTERS:
        raise PlanError(f"{what} has {len(source)} characters; at most {_MAX_CHARACTERS}")
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise PlanError(f"{what} does not parse: {error}") from error


def _parse_test(test: str) -> ast.Module | PlanError:
    try:
        tree = _parse(test.strip(), "the test")
    except PlanError as error:
        return error
    if not any(isinstance(node, ast.Assert) for node in ast.walk(tree)):
        return PlanError("the test asserts nothing")
    return tree


def _imported(tree: ast.Module) -> frozenset[str]:
    """List the names that the import statements take from trusted modules."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                module = alias.name.partition(".")[0]
                names |= {alias.asname or module} if module in TRUSTED_MODULES else set()
        elif isinstance(node, ast.ImportFrom) and node.module in TRUSTED_MODULES:
            if any(alias.name == "*" for alias in node.names):
                names.update(n for n in dir(importlib.import_module(node.module)) if n[0] != "_")
            names.update(alias.asname or alias.name for alias in node.names)
    return frozenset(names - {"*"})


def _helpers(setup: ast.Module, imported: frozenset[str]) -> frozenset[str]:
    """Functions and plain constants of a set-up code that needs nothing of the submission's."""
    if names_loaded_in(setup) - names_bound_in(setup) - _BUILTINS - imported:
        return frozenset()
    names: set[str] = set()
    for node in setup.body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
    return frozenset(names)


def _builtin_under_test(trees: Iterable[ast.Module], known: frozenset[str]) -> frozenset[str]:
    """Builtin names that the submission is expected to define itself, as `sum` in task 126."""
    called_first: set[str] = set()
    for tree in trees:
        if names_loaded_in(tree) - known - names_bound_in(tree) - _BUILTINS - TRUSTED_MODULES:
            return frozenset()
        call = next((node for node in ast.walk(tree) if isinstance(node, ast.Call)), None)
        if call is not None and isinstance(call.func, ast.Name):
            called_first.add(call.func.id)
    return frozenset(called_first & _BUILTINS)


def _planned(
    tree: ast.Module, source: str, trusted: frozenset[str], bound: frozenset[str]
) -> Equality | Program:
    sides = _equality_sides(tree)
    for call, expected in sides:
        # Most tests call one function with literals; the general rule would find the same.
        if isinstance(call.func, ast.Name) and _has_literals_only(call):
            name = call.func.id
            if name not in trusted and name not in bound:
                return Equality(_segment(source, call), expected, (name,))
    for call, expected in sides:
        names = names_for_call(tree, call, trusted, bound)
        if names is not None:
            return Equality(_segment(source, call), expected, names)
    return split_test(tree, trusted, bound)


def _equality_sides(tree: ast.Module) -> list[tuple[ast.Call, Any]]:
    """Find call and literal of a test `assert CALL == LITERAL`, in either order."""
    statement = tree.body[0]
    if len(tree.body) != 1 or not isinstance(statement, ast.Assert):
        return []
    test = statement.test
    if not isinstance(test, ast.Compare) or [type(op) for op in test.ops] != [ast.Eq]:
        return []
    sides = []
    for call, literal in ((test.left, test.comparators[0]), (test.comparators[0], test.left)):
        if isinstance(call, ast.Call):
            try:
                sides.append((call, ast.literal_eval(literal)))
            except _NOT_LITERAL:
                continue
    return sides


def _has_literals_only(call: ast.Call) -> bool:
    try:
        for argument in call.args:
            ast.literal_eval(argument)
    except _NOT_LITERAL:
        return False
    return not call.keywords


def _segment(source: str, call: ast.Call) -> str:
    if source.isascii() and source.isprintable():
        # One line, and columns count characters; the general way splits the source each time.
        return source[call.col_offset : call.end_col_offset]
    return ast.get_source_segment(source, call) or ast.unparse(call)
