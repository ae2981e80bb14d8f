"""What failing loss cases have in common, how much the departure matters, and the smallest one."""

from collections.abc import Sequence

import numpy as np

from sdpo.parity.compare.agreement import Values
from sdpo.parity.compare.evaluated_case import Observation
from sdpo.parity.explain.conditions import CONDITIONS, fulfilled, telling_apart, telling_mostly
from sdpo.parity.explain.explanation_rows import Diagnosis, MostlyWhere

_MOST_SHARED, _MOST_WORDS = 3, 7
_IMPLIED = ("one row", "several rows", "as many rows", "one token", "more than", "every token")
_GENERAL = ("a top-k", "a temperature", "a mean over rows", "half precision", "equal logits")
"""Conditions that no reader needs beside the shape and the others."""


def diagnosis(observations: Sequence[Observation]) -> Diagnosis | None:
    """Say what the cases in which a candidate departs show together; None if it departs in none.

    Args:
        observations: the candidate's results, on cases where it departs and where it holds.
    """
    failing = [o for o in observations if o.diverges]
    if not failing:
        return None
    cases = [o.evaluated.case for o in failing]
    holding = [o.evaluated.case for o in observations if not o.diverges]
    only = telling_apart(cases, holding) if holding else ""
    mostly = None if only else telling_mostly(cases, holding)
    met = [fulfilled(case) for case in holding]
    every = frozenset.intersection(*map(fulfilled, cases))
    counts = {name: sum(name in each for each in met) for name in CONDITIONS if name in every}
    rare = sorted((n for n in counts if 2 * counts[n] < len(met)), key=lambda n: counts[n])
    ratios, cosines = zip(*map(_gradients, failing), strict=True)
    smallest = min(failing, key=_oddities)
    return Diagnosis(
        failing=len(failing),
        compared=len(observations),
        only_where=only,
        mostly=mostly and MostlyWhere(*mostly),
        shared={name: counts[name] for name in rare[:_MOST_SHARED]},
        gradient_ratio=_middle([r for r in ratios if r is not None]),
        gradient_cosine=min((c for c in cosines if c is not None), default=None),
        relative=max((r for r in map(_relative, failing) if r is not None), default=None),
        smallest=smallest.evaluated.case.id,
        settings=_settings(smallest),
        actual=_loss(smallest.values),
        expected=_loss(_reference(smallest)),
    )


def _reference(observation: Observation) -> Values:
    """The reference's values on the same case."""
    return observation.evaluated.agreement.reference_values


def _gradients(observation: Observation) -> tuple[float | None, float | None]:
    """Ratio of the norms and cosine of the two gradients; None where either is zero or missing."""
    ours = observation.values.get("gradient")
    theirs = _reference(observation).get("gradient")
    if ours is None or theirs is None:
        return None, None
    norms = float(np.linalg.norm(ours)), float(np.linalg.norm(theirs))
    if not np.isfinite(norms).all() or not norms[1]:
        return None, None
    product = float(np.sum(ours * theirs))
    return norms[0] / norms[1], product / (norms[0] * norms[1]) if norms[0] else None


def _relative(observation: Observation) -> float | None:
    """The larger difference of loss and gradient ÷ the reference's value; None if not finite."""
    theirs, shares = _reference(observation), []
    for name in ("aggregate", "gradient"):
        if name in observation.values and name in theirs:
            size = float(np.linalg.norm(theirs[name]))
            with np.errstate(invalid="ignore"):
                gap = float(np.linalg.norm(observation.values[name] - theirs[name]))
            shares += [gap / size] if size and np.isfinite(gap) else []
    return max(shares, default=None)


def _middle(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None


def _loss(values: Values) -> float | None:
    return float(values["aggregate"]) if "aggregate" in values else None


def _oddities(observation: Observation) -> tuple[int, int]:
    """How many special conditions a case fulfils, then its size: a reader wants few of both."""
    case = observation.evaluated.case
    return len(fulfilled(case)), case.student_logits.numel()


def _settings(observation: Observation) -> str:
    """Say in words what a case is, its shape first."""
    case = observation.evaluated.case
    rows, tokens, vocabulary = case.student_logits.shape
    met = fulfilled(case).difference(_GENERAL)
    words = [n for n in CONDITIONS if n in met and not n.startswith(_IMPLIED)]
    return ", ".join([f"{rows} x {tokens} x {vocabulary}", *words[:_MOST_WORDS]])
