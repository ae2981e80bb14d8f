"""Comparison of one stage's value with the reference: metrics, and the status they imply.

An element passes if it is as far from the reference as two correct evaluations may be: the budget,
plus the reference's own distance from the oracle (never more than another budget).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from sdpo.parity.compare.improvements import improvements
from sdpo.parity.compare.statuses import FAILING, FINITE, Status
from sdpo.parity.truth.oracle import Array

Worst = dict[str, Any]
"""An element: its indices by name or `value`, what it is, and `actual`, `expected`, `budget`."""

_SIZED = ("", "value")
"""Effects of which the difference has a size: none, and another value."""


@dataclass(frozen=True)
class Comparison:
    """How one named value of a stage compares with the reference.

    `max_abs`, `max_ulp` and `budget_used` are maxima over the finite elements (`max_ulp` over those
    larger than their budget); `worst` describes
    the element that uses most of its budget; `smallest_detectable` is the smallest relative change
    of an element that would have failed. `relative` is the size of the difference ÷ the size of the
    reference's value, both in the norm; None where the value is no larger than its budget.
    `inherits` names an earlier divergent stage that the value follows from. `place` is (update,
    optimizer step, micro-batch) of a value of a training, and orders those of a case in time;
    `may_follow` names stages whose result, not recorded since the last value that is known to be
    right, the value may follow from (`first_in_time.py`).
    """

    stage: str
    status: Status
    case: str = ""
    compared: int = 0
    max_abs: float = 0.0
    max_ulp: float = 0.0
    budget_used: float = 0.0
    smallest_detectable: float | None = None
    relative: float | None = None
    worst: Worst = field(default_factory=dict)
    note: str = ""
    effect: str = ""
    inherits: str = ""
    place: tuple[int, ...] = ()
    may_follow: tuple[str, ...] = ()


@dataclass(frozen=True)
class Expected:
    """What a value is compared with: reference, oracle and bound, all of one shape.

    `excused` marks, by the effect of a documented improvement (`improvements.py`), elements where
    the oracle's finite value may stand for a non-finite one of the reference. `unit` is the natural
    scale of a gradient: a value that is zero throughout, where the oracle is more than a rounding
    of the unit, never passes, however wide the budget. `whole` limits the distance of all elements
    together from the oracle, in the norm (`norm_limit.py`).
    """

    reference: Array
    truth: Array
    bound: Array
    epsilon: float
    excused: Mapping[str, Array | bool] = field(default_factory=dict)
    unit: float | None = None
    whole: float | None = None
    labels: tuple[str, ...] = ()

    @cached_property
    def allowed(self) -> Array:
        """How far each element may be from the reference."""
        with np.errstate(all="ignore"):
            away = _finite_or_zero(np.abs(self.reference - self.truth))
            return self.bound + np.minimum(away, self.bound)


def compare_numeric(stage: str, case: str, actual: Array, expected: Expected) -> Comparison:
    """Compare a floating value element by element.

    Args:
        stage: name of the stage.
        case: identifier of the case.
        actual: the candidate's value as float64.
        expected: reference, oracle and bounds.
    """
    if actual.shape != expected.reference.shape:
        shapes = f"shape {tuple(actual.shape)}, expected {tuple(expected.reference.shape)}"
        return Comparison(stage, Status.ERROR, case, note=shapes)
    if actual.size == 0:
        return Comparison(stage, Status.NOT_COVERED, case, note="no element counts")
    difference = _Difference(actual, expected)
    size, error, used = actual.size, difference.error, difference.used
    measured = {"compared": size, "max_abs": float(error.max()), "budget_used": float(used.max())}
    if difference.vanished:
        note, effect = "all zero where the reference is not", "value"
        return Comparison(
            stage, Status.DIVERGENT, case, **measured, relative=1.0, note=note, effect=effect
        )
    status, note, effect = _status_of(difference)
    sized = error.any() and (effect in _SIZED or status == Status.DECLARED)
    relative = difference.relative_size if sized else None
    if effect == "value" and relative is not None:
        note += f", {relative:.2g} of the value"
    comparison = Comparison(
        stage,
        status,
        case,
        **measured,
        max_ulp=difference.max_ulp,
        smallest_detectable=difference.smallest_detectable,
        relative=relative,
        worst={} if status == Status.MATCH else difference.worst,
        note=note,
        effect=effect,
    )
    return comparison if status == Status.MATCH else _within_norm(comparison, actual, expected)


@dataclass(frozen=True)
class _Difference:
    """A value beside the reference's, element by element: what status and metrics are made of."""

    actual: Array
    expected: Expected

    @cached_property
    def same(self) -> Array:
        """Whether the elements are equal, or both NaN."""
        actual, reference = self.actual, self.expected.reference
        return (actual == reference) | (np.isnan(actual) & np.isnan(reference))

    @cached_property
    def finite(self) -> Array:
        """Whether the elements are finite on both sides."""
        return np.isfinite(self.actual) & np.isfinite(self.expected.reference)

    @cached_property
    def error(self) -> Array:
        """Distance of the elements; zero where one is not finite."""
        with np.errstate(all="ignore"):
            return np.where(self.finite, np.abs(self.actual - self.expected.reference), 0.0)

    @cached_property
    def used(self) -> Array:
        """Error ÷ allowance."""
        with np.errstate(all="ignore"):
            allowed = np.maximum(self.expected.allowed, np.finfo(float).tiny)
            return np.where(self.error == 0, 0.0, self.error / allowed)

    @cached_property
    def odd(self) -> Array:
        """Whether an element is not finite on one side, or on both and not the same."""
        odd = ~self.same & ~self.finite
        # the definition is infinite, and so is the value; the reference multiplies it by zero
        odd &= ~(np.isinf(self.actual) & (self.actual == self.expected.truth))
        if self.expected.unit is not None:
            # whether such a derivative is NaN or infinite follows from the order of operations
            odd &= np.isfinite(self.actual) | np.isfinite(self.expected.reference)
        return odd

    @cached_property
    def improved(self) -> dict[str, Array]:
        """The odd elements that each documented improvement explains, by its effect.

        A value counts only if it is the oracle's, within its budget.
        """
        with np.errstate(invalid="ignore"):
            near = np.abs(self.actual - self.expected.truth) <= self.expected.bound
        near &= self.odd & ~np.isfinite(self.expected.reference)
        shown = {effect: near & where for effect, where in self.expected.excused.items()}
        return {effect: where for effect, where in shown.items() if where.any()}

    @cached_property
    def wrong(self) -> Array:
        """The odd elements that no improvement explains."""
        return self.odd & ~np.logical_or.reduce([np.zeros_like(self.odd), *self.improved.values()])

    @property
    def vanished(self) -> bool:
        """Whether a gradient is zero throughout where the oracle's and the reference's are not."""
        expected = self.expected
        if expected.unit is None or self.actual.any() or not expected.reference.any():
            return False
        largest = _finite_or_zero(np.abs(expected.truth)).max()
        return bool(largest > expected.epsilon * expected.unit)

    @property
    def max_ulp(self) -> float:
        """The largest error in units in the last place.

        One of a value that is rounding noise itself says nothing.
        """
        reference, allowed = self.expected.reference, self.expected.allowed
        with np.errstate(all="ignore"):
            meaningful = self.finite & (self.error > 0) & (np.abs(reference) > allowed)
            units = _spacing(reference[meaningful], self.expected.epsilon)
            return float((self.error[meaningful] / units).max(initial=0.0))

    @property
    def smallest_detectable(self) -> float | None:
        """The smallest relative change of an element that would exceed its allowance."""
        reference, allowed = self.expected.reference, self.expected.allowed
        usable = self.finite & (reference != 0)
        return float((allowed[usable] / np.abs(reference[usable])).min()) if usable.any() else None

    @property
    def relative_size(self) -> float | None:
        """The norm of the errors ÷ that of the reference; None where rounding is as large."""
        sides = (self.expected.reference, self.expected.allowed, self.error)
        with np.errstate(all="ignore"):
            value, rounding, error = (np.linalg.norm(side[self.finite]) for side in sides)
            size = float(error / value)
        return size if value > rounding and np.isfinite(size) else None

    @property
    def worst(self) -> Worst:
        """The element that uses most of its budget."""
        most = np.argmax(np.where(self.wrong, np.inf, self.used))
        at = np.unravel_index(most, self.used.shape)
        labels = zip(self.expected.labels, at, strict=False)
        return {label: int(index) for label, index in labels} | {
            "actual": float(self.actual[at]),
            "expected": float(self.expected.reference[at]),
            "budget": float(self.expected.allowed[at]),
        }


def _status_of(difference: _Difference) -> tuple[Status, str, str]:
    """The status of a value by its elements, with its note and effect."""
    if difference.same.all():
        return Status.MATCH, "", ""
    if difference.wrong.any():
        return Status.DIVERGENT, *_not_finite(difference)
    over = int((difference.used > 1).sum())
    if over:
        return Status.DIVERGENT, f"{over} of {difference.used.size} over budget", "value"
    if effects := list(difference.improved):
        reasons = "; ".join(improvements()[effect].note for effect in effects)
        return Status.DECLARED, reasons, effects[0]
    return Status.PASS, "", ""


def _not_finite(difference: _Difference) -> tuple[str, str]:
    """Note and effect of elements that are wrongly finite, or wrongly not."""
    invented = int((difference.wrong & np.isfinite(difference.expected.reference)).sum())
    if invented:
        return f"{invented} non-finite values where the reference is finite", "nan"
    wrongly_finite = difference.wrong & np.isfinite(difference.actual)
    if count := int(wrongly_finite.sum()):
        note = f"{count} finite values where the reference is not"
        return note + _definition(difference.expected, wrongly_finite), FINITE
    return "non-finite values of another kind than the reference's", "nan"


def _definition(expected: Expected, wrong: Array) -> str:
    """Say what the definition gives at the first wrong value that an improvement may be about.

    Empty where none may be: a finite value is wrong there whatever it is.
    """
    for where in expected.excused.values():
        if (at := wrong & where & np.isfinite(expected.truth)).any():
            return f"; the definition gives {expected.truth[at].flat[0]:.6g}"
    return ""


def _within_norm(comparison: Comparison, actual: Array, expected: Expected) -> Comparison:
    """Count the distance of all finite elements together from the oracle too."""
    if not expected.whole:
        return comparison
    finite = np.isfinite(actual) & np.isfinite(expected.truth)
    distance = float(np.linalg.norm((actual - expected.truth)[finite]))
    used = max(comparison.budget_used, distance / expected.whole)
    if distance <= expected.whole or comparison.status in FAILING:
        return replace(comparison, budget_used=used)
    return replace(
        comparison,
        status=Status.DIVERGENT,
        budget_used=used,
        worst={
            "value": "distance from the oracle in the norm",
            "actual": distance,
            "expected": 0.0,
            "budget": expected.whole,
        },
        note="every element is within its budget, all together are not",
        effect="value",
    )


def _finite_or_zero(values: Array) -> Array:
    """The values, zero where they are not finite."""
    return np.where(np.isfinite(values), values, 0.0)


def _spacing(values: Array, epsilon: float) -> Array:
    """Distance between neighbouring numbers of the case's dtype at each finite value."""
    size = np.maximum(np.abs(values), 2.0**-126)
    return epsilon * np.exp2(np.floor(np.log2(size)))


def compare_exact(stage: str, case: str, name: str, actual: Any, expected: Any) -> Comparison:
    """Compare a discrete value: settings, texts, token ids, masks."""
    if actual == expected:
        return Comparison(stage, Status.MATCH, case, compared=1)
    worst = {"value": name, "actual": _shortened(actual), "expected": _shortened(expected)}
    return Comparison(
        stage,
        Status.DIVERGENT,
        case,
        compared=1,
        worst=worst,
        note=f"{name} differs",
        effect="value",
    )


def _shortened(value: Any, limit: int = 200) -> str:
    """Text of a value, cut to a length that fits a report."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
