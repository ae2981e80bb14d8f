"""Finds the names that a program may bind, without running it."""

import ast
from collections.abc import Iterator

# With any of these a program can bind names that its text does not show.
_DYNAMIC = frozenset(
    (
        *("exec", "eval", "compile", "globals", "locals", "vars", "setattr", "gc", "code"),
        *("__import__", "importlib", "builtins", "sys", "__builtins__", "__dict__", "modules"),
        *("types", "runpy", "inspect"),
    )
)


def bound_names(source: str, names: list[str]) -> list[str]:
    """List those of the names that the program binds, or may bind by indirect means.

    Args:
        source: The program; it must compile.
        names: The names asked about.
    """
    missing = set(names)
    for node in ast.walk(ast.parse(source)):
        missing.difference_update(bound_by(node))
        if _is_dynamic(node):
            return names
    return [name for name in names if name not in missing]


def bound_by(node: ast.AST) -> Iterator[str]:
    """Yield the names that one node of a syntax tree binds."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif isinstance(node, ast.Import | ast.ImportFrom):
        for alias in node.names:
            yield (alias.asname or alias.name).partition(".")[0]
    elif isinstance(node, ast.MatchAs | ast.MatchStar) and node.name:
        yield node.name
    elif isinstance(node, ast.MatchMapping) and node.rest:
        yield node.rest
    elif isinstance(node, ast.ExceptHandler) and node.name:
        yield node.name


def _is_dynamic(node: ast.AST) -> bool:
    if isinstance(node, ast.Name):
        return node.id in _DYNAMIC
    if isinstance(node, ast.Attribute):
        return node.attr in _DYNAMIC
    if isinstance(node, ast.Import):
        return any(alias.name.partition(".")[0] in _DYNAMIC for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        return any(alias.name == "*" for alias in node.names)
    return False
