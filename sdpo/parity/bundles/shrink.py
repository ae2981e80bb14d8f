"""The smallest case that still fails, by trying smaller ones: one search for every kind of case.

Which cases are smaller is said by a generator of *reductions*: it yields a smaller case and is sent
whether that one fails, so that the next ones start from it. The search is bounded by a count and
draws nothing at random, so that it repeats.
"""

from collections.abc import Callable, Generator
from typing import TypeVar

_AnyCase = TypeVar("_AnyCase")
Reductions = Generator[_AnyCase, bool, None]


def shrink(
    case: _AnyCase,
    reductions: Reductions[_AnyCase],
    fails: Callable[[_AnyCase], bool],
    most_tries: int,
) -> tuple[_AnyCase, int]:
    """Take the first smaller case that fails, and go on from there.

    Args:
        case: one that fails.
        reductions: of the case.
        fails: whether a smaller case fails in the same way.
        most_tries: calls of `fails` at most.

    Returns:
        The smallest case that failed, and the number of calls.
    """
    tries, smaller = 0, next(reductions, None)
    while smaller is not None and tries < most_tries:
        tries += 1
        failed = fails(smaller)
        case = smaller if failed else case
        try:
            smaller = reductions.send(failed)
        except StopIteration:
            break
    return case, tries
