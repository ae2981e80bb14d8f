"""Splits a test into what the submission must evaluate and what the harness decides.

`assert f(3) == 4` becomes the call expression `f(3)`, for the submission's process, and the rest,
which that process never sees. Three rules say which names belong to the test's side:

* builtins (`len`, `set`, `sorted`, ...), unless the function under test has a builtin's name: then
  no assert calls any other name of the submission's, and the call stays whole;
* modules of `TRUSTED_MODULES` (`math.isclose`, `sys.getsizeof`, `collections.Counter`, ...) and
  names that `test_imports` takes from them; a test may use such a module without importing it;
* what the test itself binds, and functions and plain constants of a `test_setup_code` that uses
  nothing of the submission's.

Everything else is evaluated by the submission: names, and calls of them with all their arguments.
Methods that plain values have (`f(x).lower()`, `f(x).keys()`) are called on the test's side.
"""

import ast
import builtins
import dataclasses
import functools
import importlib
import itertools
from collections.abc import Iterable
from typing import Any

TRUSTED_MODULES = frozenset(
    (
        *("bisect", "cmath", "collections", "copy", "datetime", "decimal", "fractions"),
        *("functools", "heapq", "itertools", "json", "math", "numbers", "operator", "re"),
        *("statistics", "string", "sys", "types", "typing"),
    )
)
_BUILTINS = frozenset(vars(builtins))
_PLAIN_TYPES = (int, float, complex, str, bytes, list, tuple, set, frozenset, dict)
_PLAIN_METHODS = frozenset(name for kind in _PLAIN_TYPES for name in dir(kind))
# Longer tests are refused: Python's parser takes memory in proportion to the text.
MAX_TEST_CHARACTERS = 1 << 20


class PlanError(ValueError):
    """A test that cannot be judged: it does not parse, or asserts nothing."""


@dataclasses.dataclass(frozen=True)
class Equality:
    """A test of the form `assert CALL == LITERAL`: decided in the harness.

    `names` are those that the submission must define for it.
    """

    expression: str
    expected: Any
    names: tuple[str, ...]

    def program(self) -> "Program":
        """The same test for the judge."""
        source = f"__compare__('Eq', __ask__(0, {{}}), {self.expected!r})"
        return Program(source, (self.expression,), (), self.names)


@dataclasses.dataclass(frozen=True)
class Program:
    """Any other test: its own code, with the submission's expressions by number.

    `modules` are those the judge imports; `names` those that the submission must define.
    """

    source: str
    expressions: tuple[str, ...]
    modules: tuple[str, ...]
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """All tests of a case.

    `tests` holds a `PlanError` where a test cannot be judged. `names` are those that the
    submission should define. `setup` and `imports` are the code for the judge, `setup` being empty
    where it needs the submission.
    """

    tests: tuple["Equality | Program | PlanError", ...]
    names: tuple[str, ...]
    imports: str
    setup: str


# In training the same tests come with every completion of a group.
@functools.lru_cache(maxsize=256)
def plan(tests: tuple[str, ...], imports: str = "", setup: str = "") -> Plan:
    """Plan the tests of one case.

    Args:
        tests: Source of each test.
        imports: The case's `test_imports` as one text.
        setup: The case's `test_setup_code`.

    Raises:
        PlanError: If `imports` or `setup` do not parse.
    """
    trees = [_parse_or_error(test) for test in tests]
    import_tree = _parse(imports, "test_imports")
    imported = _imported(import_tree)
    setup_tree = _parse(setup, "test_setup_code")
    bound = _bound(setup_tree) | _bound(import_tree)
    helpers = _helpers(setup_tree, imported)
    parsed = [tree for tree in trees if isinstance(tree, ast.Module)]
    under_test = _builtin_under_test(parsed, bound)
    trusted = ((_BUILTINS | imported) - _bound(setup_tree) | helpers) - under_test
    planned = tuple(
        tree if isinstance(tree, PlanError) else _planned(tree, test.strip(), trusted, bound)
        for tree, test in zip(trees, tests, strict=True)
    )
    names = {name for test in planned if not isinstance(test, PlanError) for name in test.names}
    return Plan(planned, tuple(sorted(names)), imports, setup if helpers else "")


def _parse(source: str, what: str) -> ast.Module:
    if len(source) > MAX_TEST_CHARACTERS:
        raise PlanError(f"{what} has {len(source)} characters; at most {MAX_TEST_CHARACTERS}")
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise PlanError(f"{what} does not parse: {error}") from error


def _parse_or_error(test: str) -> "ast.Module | PlanError":
    try:
        tree = _parse(test.strip(), "the test")
    except PlanError as error:
        return error
    nodes = itertools.chain(tree.body, ast.walk(tree))
    if not any(isinstance(node, ast.Assert) for node in nodes):
        return PlanError("the test asserts nothing")
    return tree


def _imported(tree: ast.Module) -> frozenset[str]:
    """Names that the import statements take from trusted modules."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] in TRUSTED_MODULES:
                    names.add(alias.asname or alias.name.partition(".")[0])
        elif isinstance(node, ast.ImportFrom) and node.module in TRUSTED_MODULES:
            if any(alias.name == "*" for alias in node.names):
                names.update(n for n in dir(importlib.import_module(node.module)) if n[0] != "_")
            names.update(alias.asname or alias.name for alias in node.names)
    return frozenset(names - {"*"})


def _bound(tree: ast.AST) -> frozenset[str]:
    """Every name that some statement or expression in the tree binds."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).partition(".")[0])
    return frozenset(names)


def _loaded(tree: ast.AST) -> frozenset[str]:
    return frozenset(
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    )


def _helpers(setup: ast.Module, imported: frozenset[str]) -> frozenset[str]:
    """Functions and plain constants of a set-up code that needs nothing of the submission's."""
    if _loaded(setup) - _bound(setup) - _BUILTINS - imported:
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
    first: set[str] = set()
    for tree in trees:
        if _loaded(tree) - known - _bound(tree) - _BUILTINS - TRUSTED_MODULES:
            return frozenset()
        call = next((node for node in ast.walk(tree) if isinstance(node, ast.Call)), None)
        if call is not None and isinstance(call.func, ast.Name):
            first.add(call.func.id)
    return frozenset(first & _BUILTINS)


def _planned(
    tree: ast.Module, source: str, trusted: frozenset[str], bound: frozenset[str]
) -> "Equality | Program":
    sides = _equality_sides(tree)
    for call, literal in sides:
        # Most tests call one function with literals; the general rule would find the same.
        if isinstance(call.func, ast.Name) and _is_plain(call, call.func.id, trusted | bound):
            return _equality(call, literal, source, (call.func.id,))
    own = _bound(tree)
    splitter = _Splitter(trusted | own, own, bound)
    for call, literal in sides:
        if splitter.is_whole(call):
            splitter.note(call)
            return _equality(call, literal, source, splitter.names())
    source = ast.unparse(ast.fix_missing_locations(splitter.visit(tree)))
    return Program(
        source, tuple(splitter.expressions), tuple(sorted(splitter.modules)), splitter.names()
    )


def _equality_sides(tree: ast.Module) -> list[tuple[ast.Call, Any]]:
    """The call and the literal's value of a test `assert CALL == LITERAL`, in either order."""
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
            except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
                continue
    return sides


def _is_plain(call: ast.Call, name: str, known: frozenset[str]) -> bool:
    return name not in known and not call.keywords and all(map(_is_literal, call.args))


def _is_literal(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False
    return True


def _equality(call: ast.Call, expected: Any, source: str, names: tuple[str, ...]) -> Equality:
    return Equality(_segment(source, call), expected, names)


def _segment(source: str, call: ast.Call) -> str:
    if source.isascii() and source.isprintable():
        # One line, and columns count characters; the general way splits the source each time.
        return source[call.col_offset : call.end_col_offset]
    return ast.get_source_segment(source, call) or ast.unparse(call)


class _Splitter(ast.NodeTransformer):
    """Rewrites a test for the judge and collects the submission's expressions."""

    def __init__(self, trusted: frozenset[str], own: frozenset[str], bound: frozenset[str]) -> None:
        self._trusted = trusted
        self._own = own
        self._bound = bound
        self._names: set[str] = set()
        self.expressions: list[str] = []
        self.modules: set[str] = set()

    def names(self) -> tuple[str, ...]:
        """What the submission must define; not what imports and set-up code bind."""
        return tuple(sorted(self._names - self._bound - self._own))

    def note(self, node: ast.AST) -> None:
        """Remember the name that an expression of the submission's starts with."""
        root = _root(node)
        if root is not None:
            self._names.add(root.id)

    def _is_module(self, name: str) -> bool:
        free = name not in self._bound and name not in self._own
        return name in TRUSTED_MODULES and free

    def is_whole(self, node: ast.expr) -> bool:
        """Whether the submission evaluates all of this call or attribute."""
        if isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Attribute) and not _is_dotted(function):
                return function.attr not in _PLAIN_METHODS and self.is_whole_value(function.value)
            root = _root(function)
            return root is not None and not self._belongs_to_test(function, root.id)
        return self.is_whole_value(node)

    def is_whole_value(self, node: ast.expr) -> bool:
        """As `is_whole`, for the value whose attribute is taken."""
        if isinstance(node, ast.Name):
            return node.id not in self._trusted
        if isinstance(node, ast.Attribute):
            root = _root(node)
            if root is not None and self._belongs_to_test(node, root.id):
                return False
            return node.attr not in _PLAIN_METHODS and self.is_whole_value(node.value)
        return isinstance(node, ast.Call) and self.is_whole(node)

    def _belongs_to_test(self, node: ast.expr, root: str) -> bool:
        if isinstance(node, ast.Attribute) and self._is_module(root):
            return True
        return root in self._trusted

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if self.is_whole(node):
            return self._ask(node)
        return self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        root = _root(node)
        if root is not None and _is_dotted(node) and self._is_module(root.id):
            self.modules.add(root.id)
            return node
        if isinstance(node.ctx, ast.Load) and self.is_whole_value(node):
            return self._ask(node)
        return self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if isinstance(node.ctx, ast.Load) and node.id not in self._trusted:
            return self._ask(node)
        return node

    def _ask(self, node: ast.expr) -> ast.Call:
        self.note(node)
        inner = _bound(node)
        variables = sorted((_loaded(node) & self._own) - inner)
        self.expressions.append(ast.unparse(node))
        bindings = ast.Dict(
            [ast.Constant(name) for name in variables],
            [ast.Name(name, ast.Load()) for name in variables],
        )
        number = ast.Constant(len(self.expressions) - 1)
        return ast.Call(ast.Name("__ask__", ast.Load()), [number, bindings], [])

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        test = node.test
        if isinstance(test, ast.Compare) and len(test.ops) == 1:
            name = ast.Constant(type(test.ops[0]).__name__)
            sides = [self.visit(test.left), self.visit(test.comparators[0])]
            if isinstance(test.ops[0], ast.Eq) and not _asks(sides[0]):
                # The value under test comes first, for the feedback.
                sides.reverse()
            return _statement("__compare__", [name, *sides])
        return _statement("__truth__", [self.visit(test)])


def _statement(function: str, arguments: list[ast.expr]) -> ast.Expr:
    return ast.Expr(ast.Call(ast.Name(function, ast.Load()), arguments, []))


def _asks(node: ast.AST) -> bool:
    return any(isinstance(part, ast.Name) and part.id == "__ask__" for part in ast.walk(node))


def _root(node: ast.AST) -> ast.Name | None:
    """The name at the start of `a`, `a.b.c` or `a(...).b(...)`."""
    while isinstance(node, ast.Attribute | ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node if isinstance(node, ast.Name) else None


def _is_dotted(node: ast.expr) -> bool:
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name)
