"""Whether a difference is a change, or only what rounding makes of the same numbers.

Two routes to one number give other last bits: products in another order, a processor with other
kernels, a temperature that is multiplied in and divided out again. A value that moves by a few
roundings of its own size has not moved; one that is compared with another must be many roundings.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sdpo.parity.cases.checked_call import same_bits
from sdpo.parity.cases.tensor_distances import norms, same_shapes
from sdpo.parity.truth.tolerances import TOLERANCES

MANY = TOLERANCES.update_rerun_reach * TOLERANCES.update_roundings / 2
"""Units in the last place, of the size of a value, that rounding may explain.

The budget of a whole update's value has `update_roundings` of half a unit besides what was
measured, and a value `update_rerun_reach` budgets away may still be the same by other kernels.
"""


def moved(before: Any, after: Any) -> bool:
    """Whether a value has changed by more than rounding.

    Args:
        before: a tensor, a list or a dict of tensors, or anything else; others than floating
            tensors have moved if they differ at all.
        after: the same.

    Numerics: floating tensors are compared as a whole, in the 2-norm, with the larger of the two.
    Where one is not finite, or has another shape or dtype, any difference counts.
    """
    one, other = named(before), named(after)
    if one is None or other is None or equal(before, after):
        return not equal(before, after)
    if not same_shapes(one, other) or any(one[n].dtype != other[n].dtype for n in one):
        return True
    if not all(t.is_floating_point() for t in one.values()):
        return True
    gap, *sizes = norms((one, other), ((0, 1), (0, None), (1, None)))
    epsilon = max(torch.finfo(tensor.dtype).eps for tensor in one.values())
    return not math.isfinite(gap) or gap > MANY * epsilon * max(sizes)


def named(value: Any) -> dict[str, Tensor] | None:
    """The tensors of a value by name, None if it is not made of tensors."""
    if isinstance(value, Tensor):
        value = [value]
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = {str(number): entry for number, entry in enumerate(value)}
    if not isinstance(value, Mapping) or not value:
        return None
    tensors = {name: t for name, t in value.items() if isinstance(t, Tensor)}
    return tensors if len(tensors) == len(value) else None


def equal(before: Any, after: Any) -> bool:
    """Whether two values are the same to the bit: tensors as by `same_bits`, others as by `==`."""
    one, other = named(before), named(after)
    if one is None or other is None:
        return one is other and before == after
    return one.keys() == other.keys() and all(same_bits(one[name], other[name]) for name in one)
