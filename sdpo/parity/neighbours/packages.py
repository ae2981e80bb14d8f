"""Which losses of other packages there are, and how their code is reached."""

import __future__

import ast
import importlib
import sys
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from msgspec import Struct, convert

_TABLE = Path(__file__).with_name("neighbours.toml")


class Neighbour(Struct, frozen=True, forbid_unknown_fields=True):
    """A loss of another package.

    `install` are requirements that are installed without what they depend on; of a project that is
    taken from its repository they are none, and `folder` is what of its tree goes on the path.
    `differs` says what is not SDPO's, each of which a test computes by itself.
    """

    name: str
    candidate: str
    version: str
    module: str
    function: str
    link: str
    computes: str
    install: tuple[str, ...] = ()
    repository: str = ""
    folder: str = ""
    differs: tuple[str, ...] = ()

    @property
    def fix(self) -> str:
        """What makes the package importable, in one line."""
        if self.repository:
            return (
                f"clone {self.repository} at {self.version} and put "
                f"{self.folder or 'its folder'} on PYTHONPATH"
            )
        return (
            f"pip install --no-deps --target DIR {' '.join(self.install)}, and put DIR on "
            "PYTHONPATH"
        )


@cache
def neighbours() -> Mapping[str, Neighbour]:
    """Read the packaged table; by name, in its order."""
    rows = tomllib.loads(_TABLE.read_text(encoding="utf-8"))["neighbour"]
    return {row.name: row for row in convert(rows, list[Neighbour])}


def attribute_of(name: str, function: str = "") -> Any:
    """Import what a neighbour computes its loss by.

    Args:
        name: as in the table.
        function: another attribute of the same module than the table names.

    Raises:
        ImportError: the package, or something that it needs, is not installed.
    """
    row = neighbours()[name]
    try:
        value: Any = importlib.import_module(row.module)
    except ImportError as error:
        raise ImportError(f"{name} cannot be imported ({error}): {row.fix}") from error
    for step in (function or row.function).split("."):
        value = getattr(value, step)
    return value


def function_alone(name: str, given: Mapping[str, object]) -> Any:
    """Take one function out of a file that cannot be imported; the file's own lines are executed.

    Args:
        name: as in the table.
        given: what stands in place of the names that the file imports.

    Raises:
        ImportError: there is no such file on the path.
    """
    row = neighbours()[name]
    relative = Path(*row.module.split(".")).with_suffix(".py")
    found = [Path(entry) / relative for entry in sys.path if (Path(entry) / relative).is_file()]
    if not found:
        raise ImportError(f"{name} is not on the path, there is no {relative}: {row.fix}")
    wanted = row.function.rpartition(".")[2]
    nodes = [
        node
        for node in ast.walk(ast.parse(found[0].read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name == wanted
    ]
    if len(nodes) != 1:
        raise ImportError(f"{found[0]} has {len(nodes)} functions {wanted!r}, expected one")
    nodes[0].decorator_list = []
    code = compile(
        ast.Module(body=[nodes[0]], type_ignores=[]),
        str(found[0]),
        "exec",
        flags=__future__.annotations.compiler_flag,
    )
    scope: dict[str, Any] = dict(given)
    exec(code, scope)
    return scope[wanted]
