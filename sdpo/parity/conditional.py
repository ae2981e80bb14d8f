"""A known fault that a candidate has under some settings only.

Ports often are wrong in one branch: in one mode of aggregation, at one alpha, in one dtype. Such a
candidate gives a fault's results where it diverges, and the reference's where it holds. The fault
explains it if one setting tells the two apart.
"""

from collections.abc import Callable, Sequence
from typing import Any

from sdpo.parity.case import LossCase

Setting = Callable[[LossCase], Any]

SETTINGS: dict[str, Setting] = {
    "loss_agg_mode": lambda case: case.config.loss_agg_mode,
    "alpha": lambda case: f"{case.config.alpha:g}",
    "mode": lambda case: case.mode,
    "dtype": lambda case: str(case.dtype).removeprefix("torch."),
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
