"""What a case is judged by: oracle with budgets and the reference's values, computed once.

Also what a candidate gave on it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sdpo.parity.cases.loss_case import LossCase, reference_trace
from sdpo.parity.compare.agreement import (
    PER_TOKEN,
    Agreement,
    Values,
    counted,
    values_at_tokens,
)
from sdpo.parity.compare.comparison import Comparison, Expected
from sdpo.parity.compare.improvements import EMPTY_BATCH, ZERO_PROBABILITY, ZERO_WEIGHT
from sdpo.parity.truth.budget import Truth, truth
from sdpo.parity.truth.norm_limit import norm_limit
from sdpo.parity.truth.oracle import Array
from sdpo.parity.truth.rounded_token_counts import counting_exactly

_LABELS = {"aggregate": (), "gradient": ("row", "token", "vocabulary_id")}
"""Names of the axes of what is no per-token value."""


@dataclass(eq=False)
class EvaluatedCase:
    """A case with its truth and its reference; they, and what is made of them, are made once.

    Attributes:
        case: the inputs.
        all_choices: whether the budgets leave room for each choice among ties.
        widen: what is done to the budgets of the case, and to those of a choice among ties.
        of_reference: comparisons of the reference's own values, by their names.
    """

    case: LossCase
    all_choices: bool = True
    widen: Callable[[Truth], Truth] = lambda truth: truth
    of_reference: dict[tuple[str, ...], list[Comparison]] = field(default_factory=dict, init=False)
    _expected: dict[str, Expected] = field(default_factory=dict, init=False)
    _choosing: dict[bytes, "EvaluatedCase"] = field(default_factory=dict, init=False)

    @cached_property
    def truth(self) -> Truth:
        """Oracle values and budgets."""
        return self.widen(truth(self.case, all_choices=self.all_choices))

    @cached_property
    def reference(self) -> Mapping[str, Tensor]:
        """Stage values of the reference."""
        return reference_trace(self.case)

    @cached_property
    def agreement(self) -> Agreement:
        """What two sets of results on the case may differ by."""
        return Agreement(self.truth, self.reference, self.case.dtype)

    @cached_property
    def single(self) -> "EvaluatedCase":
        """The case judged by float32's budgets: logits rounded to float32, recorded values kept."""
        student, teacher = self.case.student_logits.float(), self.case.teacher_logits.float()
        return EvaluatedCase(replace(self.case, student_logits=student, teacher_logits=teacher))

    @cached_property
    def exact(self) -> "EvaluatedCase | None":
        """What judges a candidate that counts tokens exactly; None if the reference does too."""
        case = counting_exactly(self.case)
        return None if case is None else EvaluatedCase(case, widen=self.widen)

    def choosing(self, indices: Tensor) -> "EvaluatedCase":
        """What judges a candidate that chose this support `(B, T, K)` among ties."""
        key = indices.numpy()[self.truth.counts].tobytes()
        if key not in self._choosing:
            as_reference = torch.equal(indices, self.reference["support.indices"])
            recorded = self.reference if as_reference else {"support.indices": indices}
            self._choosing[key] = EvaluatedCase(
                replace(self.case, recorded=recorded), all_choices=False, widen=self.widen
            )
        return self._choosing[key]

    @cached_property
    def finite(self) -> bool:
        """Whether all inputs are finite."""
        case = self.case
        inputs = (case.student_logits, case.teacher_logits, case.old_log_probs)
        return all(
            bool(tensor.isfinite().all())
            for tensor in (*inputs, case.rollout_is_weights)
            if tensor is not None
        )

    @cached_property
    def zero_probability(self) -> Array:
        """Tokens `(N,)` whose loss the reference leaves undefined only by a probability of zero.

        Its value is NaN, an entry that may be in the support has the probability zero on one side,
        and the definition (0 · log 0 = 0) gives a finite divergence.
        """
        truth = self.truth
        empty = ~(np.isfinite(truth.log_p) & np.isfinite(truth.log_q)) & truth.ties.possible
        undefined = np.isnan(counted(self.reference["importance"], truth))
        return undefined & empty.any(axis=-1) & np.isfinite(truth.values["divergence"])

    def expected(self, name: str) -> Expected:
        """What a per-token value, the loss or its gradient is compared with.

        Loss and gradient see places of weight zero too.
        """
        if name not in self._expected:
            truth, reference = self.truth, self.reference
            by_element = name.startswith("log_probs")
            self._expected[name] = Expected(
                reference=values_at_tokens(name, reference[name], truth),
                truth=truth.values[name],
                bound=truth.bounds[name],
                epsilon=torch.finfo(self.case.dtype).eps,
                excused=self._excused(name),
                unit=truth.gradient_scale if name == "gradient" else None,
                whole=None if by_element else norm_limit(name, self.case, truth, reference),
                labels=_LABELS.get(name, ("token",)),
            )
        return self._expected[name]

    def _excused(self, name: str) -> Mapping[str, Array | bool]:
        """Where a value may be finite though the reference's is not, by the improvement.

        The loss, if each token that counts is finite there, or undefined by a probability of zero
        alone; the gradient at those and at places of weight zero.
        """
        if name.startswith("log_probs"):
            return {}
        truth, by_zero = self.truth, self.zero_probability
        if name in PER_TOKEN:
            return {ZERO_PROBABILITY: by_zero}
        if name == "aggregate":
            finite = np.isfinite(counted(self.reference["importance"], truth))
            explained = bool((finite | by_zero).all())
            empty, undefined = not finite.size, bool(by_zero.any())
            return {
                ZERO_PROBABILITY: explained and undefined,
                ZERO_WEIGHT: explained and not undefined and not empty,
                EMPTY_BATCH: empty,
            }
        shape = truth.values[name].shape
        rows = np.zeros(truth.counts.shape, dtype=bool)
        rows[truth.counts] = by_zero
        return {
            ZERO_PROBABILITY: np.broadcast_to(rows[..., None], shape),
            ZERO_WEIGHT: np.broadcast_to(~truth.counts[..., None], shape),
        }


_KEPT = "_evaluated"


def evaluate_case(case: LossCase) -> EvaluatedCase:
    """The evaluated form of a case, kept by the case itself: both go together."""
    kept = vars(case)
    if _KEPT not in kept:
        kept[_KEPT] = EvaluatedCase(case)
    return kept[_KEPT]


@dataclass(frozen=True, eq=False)
class Observation:
    """A candidate's results on a case.

    Attributes:
        evaluated: what the values are judged by.
        diverges: whether they were found to depart.
        values: the comparable ones.
        complaint: how the gradient is broken, if it is.
        given: dtype of the logits, where it is known.
        precision: dtype that each value was found to be computed in (`own_precision.py`).
    """

    evaluated: EvaluatedCase
    diverges: bool
    values: Values = field(repr=False)
    complaint: str = ""
    given: torch.dtype | None = None
    precision: Mapping[str, torch.dtype] = field(default_factory=dict, repr=False)
