"""A known fault that a candidate has under some settings only.

Ports often are wrong in one branch: in one mode of aggregation, at one alpha, in one dtype. Such a
candidate gives a fault's results where it diverges, and the reference's where it holds. The fault
explains it if one setting tells the two apart.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch

from sdpo.parity.cases.loss_case import LossCase
from sdpo.parity.compare.evaluated_case import Observation
from sdpo.parity.truth.tolerances import TOLERANCES

Setting = Callable[[LossCase], Any]

SETTINGS: dict[str, Setting] = {
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
    """The setting that tells cases with a fault from cases that it spares; empty if none does.

    Args:
        shows: cases on which the fault shows in the candidate.
        spared: cases on which the fault would show, and the candidate is as the reference.
    """
    for name, setting in SETTINGS.items():
        there, elsewhere = {setting(case) for case in shows}, {setting(case) for case in spared}
        if not there & elsewhere:
            return f"{name} {' or '.join(sorted(there))}"
    return ""


def departs_only(observations: Sequence[Observation]) -> dict[str, Any] | None:
    """The one dtype in which a candidate departs, where that is due to the dtype; else None.

    At least half of its divergent cases must have a counterpart in another dtype that holds: a case
    of the same mode, alpha and purpose.

    Returns:
        `dtype`, `cases` that depart, `of` that dtype, and `holds`: cases of each other dtype.
    """
    given = [o for o in observations if o.given is not None]
    dtypes = {o.given for o in given if o.diverges}
    if len(dtypes) != 1:
        return None
    (dtype,) = dtypes
    holding = [o for o in given if o.given != dtype]
    kinds = {kind_of(o.evaluated.case) for o in holding}
    departing = [o for o in given if o.diverges]
    unmatched = sum(kind_of(o.evaluated.case) not in kinds for o in departing)
    if unmatched > TOLERANCES.dtype_unmatched_share * len(departing):
        return None
    counts = Counter(named(o.given) for o in holding)
    of = sum(o.given == dtype for o in given)
    return {
        "dtype": named(dtype),
        "cases": len(departing),
        "of": of,
        "holds": dict(sorted(counts.items())),
    }


def kind_of(case: LossCase) -> tuple[Any, ...]:
    """What a case is about, whatever its dtype."""
    return case.mode, case.config.alpha, case.tags


def named(dtype: torch.dtype | None) -> str:
    """The name of a dtype in reports."""
    return str(dtype).removeprefix("torch.")
