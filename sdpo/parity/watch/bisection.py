"""Find the releases between which something moved by halving the list of all releases."""

from collections.abc import Callable, Sequence
from typing import TypeVar

Result = TypeVar("Result")


def bisect(
    count: int,
    audited: Callable[[int], Result | None],
    differ: Callable[[Result, Result], bool],
) -> dict[int, Result | None]:
    """Audit as few of some releases as show where neighbours differ.

    Both ends are audited, then the middle of every stretch whose ends differ. What comes and goes
    again inside of a stretch with equal ends is not seen. A release that cannot be judged is passed
    over for its neighbours.

    Args:
        count: number of releases.
        audited: audits the release of a number; None where it cannot be judged.
        differ: whether two releases differ.

    Returns:
        What was audited, by number.
    """
    results: dict[int, Result | None] = {}

    def first_judged(numbers: Sequence[int]) -> int | None:
        """The first of some releases that can be judged."""
        for number in numbers:
            if number not in results:
                results[number] = audited(number)
            if results[number] is not None:
                return number
        return None

    def halve(low: int, high: int) -> None:
        """Audit inside of a stretch whose ends were judged."""
        left, right = results[low], results[high]
        if high - low < 2 or left is None or right is None or not differ(left, right):
            return
        inside = sorted(range(low + 1, high), key=lambda n: abs(2 * n - low - high))
        middle = first_judged(inside)
        if middle is not None:
            halve(low, middle)
            halve(middle, high)

    low = first_judged(range(count))
    high = first_judged(range(count - 1, -1, -1))
    if low is not None and high is not None:
        halve(low, high)
    return results
