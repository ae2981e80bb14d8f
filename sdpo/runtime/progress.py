"""Progress bars on standard error."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


@contextmanager
def progress_bars(*, transient: bool = False) -> Iterator["Progress"]:
    """Show bars with a description, a count and the time left; none without a terminal.

    Args:
        transient: the bars vanish at the end.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    disabled = not console.is_terminal
    with Progress(*columns, console=console, transient=transient, disable=disabled) as bars:
        yield bars


@contextmanager
def progress_bar(name: str, total: int, completed: int = 0) -> Iterator[Callable[..., None]]:
    """Show one bar; gives what updates it, with the keywords of `rich.progress.Progress.update`."""
    with progress_bars() as bars:
        yield partial(bars.update, bars.add_task(name, total=total, completed=completed))
