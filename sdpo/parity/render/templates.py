"""The templates that reports are made from."""

from collections.abc import Callable, Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template


def compiled(path: Path, filters: Mapping[str, Callable[..., str]]) -> Template:
    """Compile a template; a name in it that is not given is an error when it is rendered.

    Args:
        path: of its file; in one whose name tells of HTML values are escaped.
        filters: by the names that the template uses.
    """
    environment = Environment(
        loader=FileSystemLoader(path.parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=path.name.endswith(".html.j2"),
    )
    environment.filters |= filters
    return environment.get_template(path.name)
