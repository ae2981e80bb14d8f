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
from sdpo.parity.compare.statuses import Status
from sdpo.parity.truth.oracle import Array

FINITE = "finite_where_reference_is_not"
SIZED = ("", "value")
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
    worst: dict[str, Any] = field(default_factory=dict)
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
            away = finite_or_zero(np.abs(self.reference - self.truth))
            return self.bound + np.minimum(away, self.bound)


def compare_numeric(stage: str, case: str, actual: Array, expected: Expected) -> Comparison:
    """Compare a floating value element by element.

    Args:
        stage: name of the stage.
        case: identifier of the case.
        actual: the candidate's value as float64.
        expected: reference, oracle and bounds.
    """
    reference = expected.reference
    if actual.shape != reference.shape:
        return Comparison(
            stage,
            Status.ERROR,
            case,
            note=f"shape {tuple(actual.shape)}, expected {tuple(reference.shape)}",
        )
    if actual.size == 0:
        return Comparison(stage, Status.NOT_COVERED, case, note="no element counts")
    with np.errstate(all="ignore"):
        same = (actual == reference) | (np.isnan(actual) & np.isnan(reference))
        finite = np.isfinite(actual) & np.isfinite(reference)
        error = np.where(finite, np.abs(actual - reference), 0.0)
        allowed = expected.allowed
        used = np.where(error == 0, 0.0, error / np.maximum(allowed, np.finfo(float).tiny))
        # a unit in the last place of a value that is rounding noise itself says nothing
        meaningful = finite & (error > 0) & (np.abs(reference) > allowed)
        ulp = error[meaningful] / spacing(reference[meaningful], expected.epsilon)
    odd = ~same & ~finite
    if expected.unit is not None:
        # whether such a derivative is NaN or infinite follows from the order of operations
        odd &= np.isfinite(actual) | np.isfinite(reference)
    effects, excused = improved(actual, expected, odd)
    if expected.unit is not None and vanished(actual, expected):
        return Comparison(
            stage,
            Status.DIVERGENT,
            case,
            compared=int(actual.size),
            max_abs=float(error.max()),
            budget_used=float(used.max()),
            relative=1.0,
            note="all zero where the reference is not",
            effect="value",
        )
    status, note, effect = judge(actual, reference, same, used, odd, excused)
    if effect == FINITE:
        note += definition(expected, odd & ~excused & np.isfinite(actual))
    sized = effect in SIZED and bool(error.any())
    relative = relative_size(error, reference, allowed, finite) if sized else None
    if effect == "value" and relative is not None:
        note += f", {relative:.2g} of the value"
    if status == Status.DECLARED:
        note, effect = "; ".join(improvements()[name].note for name in effects), effects[0]
    at = np.unravel_index(np.argmax(np.where(odd & ~excused, np.inf, used)), used.shape)
    found = Comparison(
        stage=stage,
        status=status,
        case=case,
        compared=int(actual.size),
        max_abs=float(error.max()),
        max_ulp=float(ulp.max(initial=0.0)),
        budget_used=float(used.max()),
        smallest_detectable=detectable(reference, allowed, finite),
        relative=relative,
        worst=describe(at, actual, reference, allowed, expected.labels) if not same.all() else {},
        note=note,
        effect=effect,
    )
    return found if same.all() else judged_as_a_whole(found, actual, expected)


def improved(actual: Array, expected: Expected, odd: Array) -> tuple[list[str], Array]:
    """The documented improvements that hold among the `odd` elements, and the elements of theirs.

    A value counts only if it is the oracle's, within its budget.
    """
    with np.errstate(invalid="ignore"):
        near = np.abs(actual - expected.truth) <= expected.bound
    near &= odd & ~np.isfinite(expected.reference)
    shown = {effect: near & where for effect, where in expected.excused.items()}
    effects = [effect for effect, where in shown.items() if where.any()]
    return effects, np.logical_or.reduce([np.zeros_like(odd), *shown.values()])


def judged_as_a_whole(found: Comparison, actual: Array, expected: Expected) -> Comparison:
    """The comparison, with the distance of all finite elements from the oracle counted too."""
    if not expected.whole:
        return found
    finite = np.isfinite(actual) & np.isfinite(expected.truth)
    distance = float(np.linalg.norm((actual - expected.truth)[finite]))
    used = max(found.budget_used, distance / expected.whole)
    if distance <= expected.whole or found.status not in (
        Status.MATCH,
        Status.PASS,
        Status.DECLARED,
    ):
        return replace(found, budget_used=used)
    return replace(
        found,
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


def judge(
    actual: Array, reference: Array, same: Array, used: Array, odd: Array, excused: Array
) -> tuple[Status, str, str]:
    """Status, note and kind of effect from the element-wise findings."""
    if same.all():
        return Status.MATCH, "", ""
    unexcused = odd & ~excused
    if unexcused.any():
        invented = int((unexcused & np.isfinite(reference)).sum())
        if invented:
            return (
                Status.DIVERGENT,
                f"{invented} non-finite values where the reference is finite",
                "nan",
            )
        finite = int((unexcused & np.isfinite(actual)).sum())
        if finite:
            note = f"{finite} finite values where the reference is not"
            return Status.DIVERGENT, note, FINITE
        return Status.DIVERGENT, "non-finite values of another kind than the reference's", "nan"
    if (used > 1).any():
        return Status.DIVERGENT, f"{int((used > 1).sum())} of {used.size} over budget", "value"
    return (Status.DECLARED if excused.any() else Status.PASS), "", ""


def vanished(actual: Array, expected: Expected) -> bool:
    """Whether a gradient is zero throughout where the oracle's is not."""
    if actual.any():
        return False
    return bool(
        finite_or_zero(np.abs(expected.truth)).max() > expected.epsilon * (expected.unit or 0.0)
    )


def finite_or_zero(values: Array) -> Array:
    """The values, zero where they are not finite."""
    return np.where(np.isfinite(values), values, 0.0)


def spacing(values: Array, epsilon: float) -> Array:
    """Distance between neighbouring numbers of the case's dtype at each finite value."""
    size = np.maximum(np.abs(values), 2.0**-126)
    return epsilon * np.exp2(np.floor(np.log2(size)))


def detectable(reference: Array, allowed: Array, finite: Array) -> float | None:
    """The smallest relative change of an element that would exceed its allowance."""
    usable = finite & (reference != 0)
    return float((allowed[usable] / np.abs(reference[usable])).min()) if usable.any() else None


def definition(expected: Expected, wrong: Array) -> str:
    """What the definition gives at the first finite value that a documented improvement explains.

    Empty where none may be about it: a finite value is wrong there whatever it is.
    """
    for where in expected.excused.values():
        if (at := wrong & where & np.isfinite(expected.truth)).any():
            return f"; the definition gives {expected.truth[at].flat[0]:.6g}"
    return ""


def relative_size(error: Array, reference: Array, allowed: Array, finite: Array) -> float | None:
    """The norm of the finite errors ÷ that of the reference; None where rounding is as large."""
    with np.errstate(all="ignore"):
        value, room = (np.linalg.norm(v[finite]) for v in (reference, allowed))
        size = float(np.linalg.norm(error[finite]) / value)
    return size if value > room and np.isfinite(size) else None


def describe(
    at: tuple[Any, ...], actual: Array, reference: Array, allowed: Array, labels: tuple[str, ...]
) -> dict[str, Any]:
    """The element that uses most of its budget."""
    place = {label: int(index) for label, index in zip(labels, at, strict=False)}
    return place | {
        "actual": float(actual[at]),
        "expected": float(reference[at]),
        "budget": float(allowed[at]),
    }


def compare_exact(stage: str, case: str, name: str, actual: Any, expected: Any) -> Comparison:
    """Compare a discrete value: settings, texts, token ids, masks."""
    if actual == expected:
        return Comparison(stage, Status.MATCH, case, compared=1)
    worst = {"value": name, "actual": shortened(actual), "expected": shortened(expected)}
    return Comparison(
        stage,
        Status.DIVERGENT,
        case,
        compared=1,
        worst=worst,
        note=f"{name} differs",
        effect="value",
    )


def shortened(value: Any, limit: int = 200) -> str:
    """Text of a value, cut to a length that fits a report."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
