"""Finds the one setting under which alone a candidate has a known fault, or departs.

Ports often are wrong in one branch: in one mode of aggregation, at one alpha, in one dtype. Such a
candidate gives a fault's results where it diverges, and the reference's where it holds. The fault
explains it if one setting tells the two apart.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import torch

from sdpo.parity.cases.loss_case import LossCase
from sdpo.parity.compare.evaluated_case import Observation
from sdpo.parity.explain.conditions import telling_apart
from sdpo.parity.explain.explanation_rows import OneDtypeOnly
from sdpo.parity.truth.tolerances import TOLERANCES

_FEW = 4
_SETTINGS: dict[str, Callable[[LossCase], str]] = {
    "loss_agg_mode": lambda case: case.config.loss_agg_mode,
    "alpha": lambda case: f"{case.config.alpha:g}",
    "mode": lambda case: case.mode,
    "dtype": lambda case: named(case.dtype),
    "is_clip": lambda case: "given" if case.config.is_clip is not None else "none",
    "temperature": lambda case: "1" if case.config.temperature == 1.0 else "other",
    "rows": lambda case: "one" if len(case.responses) == 1 else "several",
    "rollout_is_weights": lambda case: "given" if case.rollout_is_weights is not None else "none",
    "self_distillation_mask": lambda case: (
        "given" if case.self_distillation_mask is not None else "none"
    ),
}


def condition(shows: Sequence[LossCase], spared: Sequence[LossCase]) -> str:
    """Name the setting that tells cases with a fault from those that it spares; empty if none.

    Args:
        shows: cases on which the fault shows in the candidate.
        spared: cases on which the fault would show, and the candidate is as the reference.
    """
    for name, setting in _SETTINGS.items():
        with_fault, without = {setting(case) for case in shows}, {setting(case) for case in spared}
        if not with_fault & without:
            return f"{name} {' or '.join(sorted(with_fault))}"
    # among many conditions one tells a few cases apart by chance
    few = min(len(shows), len(spared)) < _FEW
    return "" if few else telling_apart(shows, spared, together=1)


def departs_only(observations: Sequence[Observation]) -> OneDtypeOnly | None:
    """Name the one dtype in which a candidate departs, where that is due to the dtype.

    At least half of its divergent cases must have a counterpart in another dtype that holds: a case
    of the same mode, alpha and purpose.

    Returns:
        The dtype with how many of its cases depart, and how many hold of each other one.
    """
    known = [o for o in observations if o.given is not None]
    dtypes = {o.given for o in known if o.diverges}
    if len(dtypes) != 1:
        return None
    (dtype,) = dtypes
    holding = [o for o in known if o.given != dtype]
    kinds = {_kind_of(o.evaluated.case) for o in holding}
    departing = [o for o in known if o.diverges]
    unmatched = sum(_kind_of(o.evaluated.case) not in kinds for o in departing)
    if unmatched > TOLERANCES.dtype_unmatched_share * len(departing):
        return None
    counts = Counter(named(o.given) for o in holding)
    of_dtype = sum(o.given == dtype for o in known)
    return OneDtypeOnly(named(dtype), len(departing), of_dtype, dict(sorted(counts.items())))


def _kind_of(case: LossCase) -> tuple[str, float, tuple[str, ...]]:
    """Say what a case is about, whatever its dtype: its mode, alpha and purpose."""
    return case.mode, case.config.alpha, case.tags


def named(dtype: torch.dtype | None) -> str:
    """Name a dtype as reports do."""
    return str(dtype).removeprefix("torch.")
