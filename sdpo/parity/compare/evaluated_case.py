"""What a case is judged by: oracle with budgets and the reference's values, computed once.

Also what a candidate gave on it, and whether two sets of results agree.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sdpo.fixtures import GoldenCase, GoldenFamily
from sdpo.parity.cases.loss_case import LossCase, from_golden, reference_trace
from sdpo.parity.compare.loss_stages import PER_TOKEN, Standard, counted
from sdpo.parity.truth.budget import Truth, truth
from sdpo.parity.truth.oracle import Array, array_of
from sdpo.parity.truth.tolerances import TOLERANCES

COMPARED = (*PER_TOKEN, "aggregate", "gradient")

Values = Mapping[str, Array]


@dataclass(eq=False)
class Prepared:
    """A case with its truth and its reference, each computed at first use."""

    case: LossCase

    @cached_property
    def truth(self) -> Truth:
        """Oracle values and budgets."""
        return truth(self.case)

    @cached_property
    def reference(self) -> dict[str, Tensor]:
        """Stage values of the reference."""
        return reference_trace(self.case)

    @cached_property
    def single(self) -> "Prepared":
        """The case judged by float32's budgets: logits rounded to float32, recorded values kept."""
        student, teacher = self.case.student_logits.float(), self.case.teacher_logits.float()
        return Prepared(replace(self.case, student_logits=student, teacher_logits=teacher))

    @cached_property
    def standard(self) -> Standard:
        """What a candidate's values are compared with."""
        return Standard(self.case, self.truth, self.reference)

    @cached_property
    def reference_values(self) -> Values:
        """The reference's values at the tokens that count."""
        return values_of(self, self.reference)

    @cached_property
    def judged(self) -> Values:
        """The elements where the reference is finite."""
        return {name: np.isfinite(values) for name, values in self.reference_values.items()}

    @cached_property
    def reference_allowed(self) -> Values:
        """The allowances around the reference."""
        return allowances(self, self.reference_values)

    @cached_property
    def budgets(self) -> dict[str, tuple[Array, float]]:
        """The budget of each value, and its share of the largest element, limited."""
        most = torch.finfo(self.case.dtype).eps ** TOLERANCES.agreement_largest_digits
        found = {}
        for name in COMPARED:
            if name in self.truth.values:
                bound, size = self.truth.bounds[name], np.abs(self.truth.values[name])
                bound = np.where(np.isfinite(bound), bound, 0.0)
                largest = np.where(np.isfinite(size), size, 0.0).max(initial=0.0)
                share = min(bound.max(initial=0.0) / largest, most) if largest else most
                found[name] = (bound, float(share))
        return found

    @cached_property
    def finite(self) -> bool:
        """Whether all inputs are finite."""
        case = self.case
        optional = (case.old_log_probs, case.rollout_is_weights)
        given = [tensor for tensor in optional if tensor is not None]
        return all(
            bool(tensor.isfinite().all())
            for tensor in (case.student_logits, case.teacher_logits, *given)
        )


_KEPT = "_prepared"
_CASES: dict[int, tuple[GoldenCase, LossCase]] = {}
"""Recorded cases by the entry of their manifest, which each of them keeps."""


def prepared(case: LossCase) -> Prepared:
    """The prepared form of a case, kept by the case itself: both go together."""
    kept = vars(case)
    if _KEPT not in kept:
        kept[_KEPT] = Prepared(case)
    return kept[_KEPT]


def loss_case(golden: GoldenCase) -> LossCase:
    """A recorded case of the loss; the same object for the same entry of a manifest.

    Raises:
        GoldenDataError: as `from_golden`.
    """
    known = _CASES.get(id(golden.entry))
    if known is None or known[0].entry is not golden.entry or known[0].folder != golden.folder:
        known = _CASES[id(golden.entry)] = (golden, from_golden(golden))
    return known[1]


def loss_cases(family: GoldenFamily) -> list[LossCase]:
    """The cases of a family of the loss; the same objects in each part of a family."""
    return [loss_case(golden) for golden in family]


@dataclass(frozen=True, eq=False)
class Observation:
    """A candidate's results on a case; `complaint` says how its gradient is broken, if it is.

    `given` is the dtype of the logits, where it is known, and `precision` the dtype that each value
    was found to be computed in (`own_precision.py`); `on` is what the values are judged by.
    """

    on: Prepared
    diverges: bool
    values: Values = field(repr=False)
    complaint: str = ""
    given: torch.dtype | None = None
    precision: Mapping[str, torch.dtype] = field(default_factory=dict, repr=False)


def values_of(on: Prepared, trace: Mapping[str, Tensor]) -> Values:
    """The comparable values of a trace, per-token ones at the tokens that count."""
    found: dict[str, Array] = {}
    for name in COMPARED:
        if name in trace:
            per_token = name in PER_TOKEN
            found[name] = counted(trace[name], on.truth) if per_token else array_of(trace[name])
    return found


def allowances(on: Prepared, centre: Values) -> Values:
    """How far two correct evaluations around `centre` may be apart, for each element.

    Twice the budget of the case, one for each evaluation. A fault may make values larger than the
    reference's, so that the budget grows with them: by the budget's share of the largest value of
    the tensor, half the digits of the dtype at most. Where the reference has no gradient, a token's
    largest value takes the place of each; nowhere are a few roundings of that value too much.
    """
    found = {}
    epsilon = torch.finfo(on.case.dtype).eps
    outside = ~on.truth.counts[..., None]
    with np.errstate(all="ignore"):
        for name, value in centre.items():
            bound, share = on.budgets[name]
            scale = np.where(np.isfinite(value), np.abs(value), 0.0)
            if name == "gradient" and scale.size:
                of_token = scale.max(axis=-1, keepdims=True)
                scale = np.where(outside, of_token, scale)
                bound = np.maximum(bound, TOLERANCES.agreement_roundings * epsilon * of_token)
            found[name] = 2 * np.maximum(bound, share * scale)
    return found


def same(on: Prepared, actual: Values, centre: Values, allowed: Values) -> bool:
    """Whether all shared values agree; elements where the reference is not finite are left out.

    Two non-finite elements agree, of whatever kind.
    """
    with np.errstate(all="ignore"):
        for name in actual.keys() & centre.keys():
            a, b = actual[name], centre[name]
            if a.shape != b.shape:
                return False
            finite = np.isfinite(a)
            far = (finite != np.isfinite(b)) | (finite & ~(np.abs(a - b) <= allowed[name]))
            if (far & on.judged.get(name, True)).any():
                return False
    return True
