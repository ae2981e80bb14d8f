"""Names that a package offers and loads when they are asked for."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Make the `__getattr__` of a package that loads its public names from their modules.

    Args:
        package: its name.
        homes: the module of each public name, as `module:name` if it has another name there.

    Raises:
        AttributeError: when called, of a name that is not public; it lists those that are.
    """

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(
                f"module {package!r} has no attribute {name!r}; it has {sorted(homes)}"
            )
        module, _, other = homes[name].partition(":")
        return getattr(import_module(module), other or name)

    return load
