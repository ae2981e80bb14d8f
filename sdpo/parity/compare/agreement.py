"""When two sets of results on one case agree: a candidate's and a fault's, or two of a candidate.

They may differ by two budgets, one for each evaluation, and by what larger values than the
reference's allow.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdpo.parity.truth.budget import Truth
from sdpo.parity.truth.oracle import Array, array_of
from sdpo.parity.truth.tolerances import TOLERANCES

PER_TOKEN = ("log_probs.student", "log_probs.teacher", "divergence", "importance")
COMPARED = (*PER_TOKEN, "aggregate", "gradient")

Values = Mapping[str, Array]


class _Budget(NamedTuple):
    """The budget of a value, and its share of the largest element, limited."""

    bound: Array
    share: float


@dataclass(eq=False)
class Agreement:
    """What two sets of results on one case may differ by; what is made of it is kept.

    Attributes:
        truth: oracle values and budgets of the case.
        reference: stage values of the reference.
        dtype: of the case.
    """

    truth: Truth
    reference: Mapping[str, Tensor]
    dtype: torch.dtype

    @cached_property
    def reference_values(self) -> Values:
        """The reference's values at the tokens that count."""
        return self.values_of(self.reference)

    @cached_property
    def reference_allowed(self) -> Values:
        """The allowances around the reference."""
        return self.allowances(self.reference_values)

    def with_reference(self, values: Values) -> bool:
        """Tell whether results agree with the reference's."""
        return self.same(values, self.reference_values, self.reference_allowed)

    @cached_property
    def _finite(self) -> Values:
        """The elements where the reference is finite."""
        return {name: np.isfinite(values) for name, values in self.reference_values.items()}

    @cached_property
    def _budgets(self) -> dict[str, _Budget]:
        """The budget of each value."""
        most = torch.finfo(self.dtype).eps ** TOLERANCES.agreement_largest_digits
        budgets = {}
        for name in COMPARED:
            if name in self.truth.values:
                bound, size = self.truth.bounds[name], np.abs(self.truth.values[name])
                bound = np.where(np.isfinite(bound), bound, 0.0)
                largest = np.where(np.isfinite(size), size, 0.0).max(initial=0.0)
                share = min(bound.max(initial=0.0) / largest, most) if largest else most
                budgets[name] = _Budget(bound, float(share))
        return budgets

    def values_of(self, trace: Mapping[str, Tensor]) -> Values:
        """Pick the comparable values of a trace, per-token ones at the tokens that count."""
        return {
            name: values_at_tokens(name, trace[name], self.truth)
            for name in COMPARED
            if name in trace
        }

    def allowances(self, centre: Values) -> Values:
        """Bound how far two correct evaluations around `centre` may be apart, for each element.

        Twice the budget of the case, one for each evaluation. A fault may make values larger than
        the reference's, so that the budget grows with them: by the budget's share of the largest
        value of the tensor, half the digits of the dtype at most. Where the reference has no
        gradient, a token's largest value takes the place of each; nowhere are a few roundings of
        that value too much.
        """
        allowed = {}
        epsilon = torch.finfo(self.dtype).eps
        outside = ~self.truth.counts[..., None]
        with np.errstate(all="ignore"):
            for name, value in centre.items():
                bound, share = self._budgets[name]
                scale = np.where(np.isfinite(value), np.abs(value), 0.0)
                if name == "gradient" and scale.size:
                    of_token = scale.max(axis=-1, keepdims=True)
                    scale = np.where(outside, of_token, scale)
                    bound = np.maximum(bound, TOLERANCES.agreement_roundings * epsilon * of_token)
                allowed[name] = 2 * np.maximum(bound, share * scale)
        return allowed

    def same(self, actual: Values, centre: Values, allowed: Values) -> bool:
        """Tell whether all shared values agree, where the reference is finite.

        Two non-finite elements agree, of whatever kind.
        """
        with np.errstate(all="ignore"):
            for name in actual.keys() & centre.keys():
                a, b = actual[name], centre[name]
                if a.shape != b.shape:
                    return False
                finite = np.isfinite(a)
                far = (finite != np.isfinite(b)) | (finite & ~(np.abs(a - b) <= allowed[name]))
                if (far & self._finite.get(name, True)).any():
                    return False
        return True


def counted(value: Tensor, truth: Truth) -> Array:
    """Take a `(B, T, …)` value at the tokens that count, `(N, …)` float64; other shapes as is."""
    array = array_of(value)
    return array[truth.counts] if array.shape[:2] == truth.counts.shape else array


def values_at_tokens(name: str, value: Tensor, truth: Truth) -> Array:
    """Take a value as float64; one that there is for each token at the tokens that count."""
    return counted(value, truth) if name in PER_TOKEN else array_of(value)
