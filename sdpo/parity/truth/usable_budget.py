"""Which measured budgets are budgets at all: a wide one admits the very faults it is there to show.

A budget `b`, relative to the value, bounds what rounding may do. The least fault of size that it is
for is a factor of two: a value that is half of what it should be is 1/2 away, twice it, missing or
of the wrong sign at least 1. Rounding may bring such a value nearer by `b`. It is surely found only
if what is left is over the budget: 1/2 - b > b, that is b < 1/4.
"""

import math
from collections.abc import Mapping

from sdpo.parity.truth.tolerances import TOLERANCES


def shows_a_factor_of_two(budget: float, size: float = 1.0) -> bool:
    """Whether a value of half the size is surely over its budget.

    Args:
        budget: how far a value may be off, in the unit of `size`.
        size: of the value itself. Nothing is required of a value that is zero: half of it is right.
    """
    largest = TOLERANCES.usable_budget_share * abs(size)
    return size == 0 or (math.isfinite(budget) and budget < largest)


def refusal(shares: Mapping[str, float]) -> str:
    """Why budgets are refused, for a report; empty for none.

    Args:
        shares: by the name of a value, its budget relative to its size.
    """
    if not shares:
        return ""
    named = ", ".join(f"{name} by {share:.2g}" for name, share in shares.items())
    return (
        f"no budget: rounding alone may move {named} of its size; from "
        f"{TOLERANCES.usable_budget_share:g} on no factor of two shows"
    )
