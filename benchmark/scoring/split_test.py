"""Splits a test into what the submission must evaluate and what the tests process decides.

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
import dataclasses

from sdpo.benchmark.sandbox.bound_names import bound_by

TRUSTED_MODULES = frozenset(
    (
        *("bisect", "cmath", "collections", "copy", "datetime", "decimal", "fractions"),
        *("functools", "heapq", "itertools", "json", "math", "numbers", "operator", "re"),
        *("statistics", "string", "sys", "types", "typing"),
    )
)
_PLAIN_TYPES = (int, float, complex, str, bytes, list, tuple, set, frozenset, dict)
_PLAIN_METHODS = frozenset(name for kind in _PLAIN_TYPES for name in dir(kind))


@dataclasses.dataclass(frozen=True)
class Program:
    """Holds a test's own code, with the submission's expressions replaced by their numbers.

    `modules` are those the tests process imports; `names` those that the submission must define.
    """

    source: str
    expressions: tuple[str, ...]
    modules: tuple[str, ...]
    names: tuple[str, ...]


def names_bound_in(tree: ast.AST) -> frozenset[str]:
    """List every name that some statement or expression in the tree binds."""
    nodes = list(ast.walk(tree))
    parameters = {node.arg for node in nodes if isinstance(node, ast.arg)}
    return frozenset(parameters.union(*map(bound_by, nodes)))


def names_loaded_in(tree: ast.AST) -> frozenset[str]:
    """List every name that the tree reads."""
    return frozenset(
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    )


def split_test(tree: ast.Module, trusted: frozenset[str], bound: frozenset[str]) -> Program:
    """Rewrite a test for the tests process.

    Args:
        tree: The test.
        trusted: Names of the test's side that the test does not bind itself.
        bound: Names that imports and set-up code bind.
    """
    splitter = _Splitter(tree, trusted, bound)
    source = ast.unparse(ast.fix_missing_locations(splitter.visit(tree)))
    modules = tuple(sorted(splitter.modules))
    return Program(source, tuple(splitter.expressions), modules, splitter.names())


def names_for_call(
    tree: ast.Module, call: ast.Call, trusted: frozenset[str], bound: frozenset[str]
) -> tuple[str, ...] | None:
    """List the names that a call needs of the submission; `None` unless it evaluates all of it.

    The arguments besides `call` are those of `split_test`.
    """
    splitter = _Splitter(tree, trusted, bound)
    if not splitter.is_submissions_call(call):
        return None
    splitter.note_name(call)
    return splitter.names()


class _Splitter(ast.NodeTransformer):
    """Rewrites one test and collects the submission's expressions."""

    def __init__(self, tree: ast.Module, trusted: frozenset[str], bound: frozenset[str]) -> None:
        self._variables = names_bound_in(tree)
        self._trusted = trusted | self._variables
        self._bound = bound | self._variables
        self._names: set[str] = set()
        self.expressions: list[str] = []
        self.modules: set[str] = set()

    def names(self) -> tuple[str, ...]:
        """List the names that the submission must define; not what imports and set-up code bind."""
        return tuple(sorted(self._names - self._bound))

    def note_name(self, node: ast.AST) -> None:
        """Note the name that an expression of the submission's starts with."""
        root = _root(node)
        if root is not None:
            self._names.add(root.id)

    def is_submissions_call(self, call: ast.Call) -> bool:
        """Tell whether the submission evaluates all of this call."""
        function = call.func
        if isinstance(function, ast.Attribute) and not _is_dotted(function):
            return function.attr not in _PLAIN_METHODS and self._is_submissions(function.value)
        root = _root(function)
        return root is not None and not self._belongs_to_test(function, root.id)

    def _is_submissions(self, node: ast.expr) -> bool:
        """Tell whether the submission evaluates all of this value."""
        if isinstance(node, ast.Name):
            return node.id not in self._trusted
        if isinstance(node, ast.Attribute):
            root = _root(node)
            if root is not None and self._belongs_to_test(node, root.id):
                return False
            return node.attr not in _PLAIN_METHODS and self._is_submissions(node.value)
        return isinstance(node, ast.Call) and self.is_submissions_call(node)

    def _belongs_to_test(self, node: ast.expr, root: str) -> bool:
        return root in self._trusted or (isinstance(node, ast.Attribute) and self._is_module(root))

    def _is_module(self, name: str) -> bool:
        return name in TRUSTED_MODULES and name not in self._bound

    def visit_Call(self, node: ast.Call) -> ast.AST:
        return self._ask(node) if self.is_submissions_call(node) else self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        root = _root(node)
        if root is not None and _is_dotted(node) and self._is_module(root.id):
            self.modules.add(root.id)
            return node
        if isinstance(node.ctx, ast.Load) and self._is_submissions(node):
            return self._ask(node)
        return self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if isinstance(node.ctx, ast.Load) and node.id not in self._trusted:
            return self._ask(node)
        return node

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        test = node.test
        if not isinstance(test, ast.Compare) or len(test.ops) != 1:
            return _call_statement("__truth__", self.visit(test))
        comparison = type(test.ops[0]).__name__
        sides = [self.visit(test.left), self.visit(test.comparators[0])]
        if comparison == "Eq" and not _asks(sides[0]):
            # The value under test comes first, for the feedback.
            sides.reverse()
        return _call_statement("__compare__", ast.Constant(comparison), *sides)

    def _ask(self, node: ast.expr) -> ast.Call:
        """Replace an expression by the request for its value, with the test's variables in it."""
        self.note_name(node)
        variables = sorted((names_loaded_in(node) & self._variables) - names_bound_in(node))
        self.expressions.append(ast.unparse(node))
        bindings = ast.Dict(
            [ast.Constant(name) for name in variables],
            [ast.Name(name, ast.Load()) for name in variables],
        )
        number = ast.Constant(len(self.expressions) - 1)
        return ast.Call(ast.Name("__ask__", ast.Load()), [number, bindings], [])


def _call_statement(function: str, *arguments: ast.expr) -> ast.Expr:
    return ast.Expr(ast.Call(ast.Name(function, ast.Load()), list(arguments), []))


def _asks(node: ast.AST) -> bool:
    return "__ask__" in names_loaded_in(node)


def _root(node: ast.AST) -> ast.Name | None:
    """Find the name at the start of `a`, `a.b.c` or `a(...).b(...)`."""
    while isinstance(node, ast.Attribute | ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node if isinstance(node, ast.Name) else None


def _is_dotted(node: ast.expr) -> bool:
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name)
