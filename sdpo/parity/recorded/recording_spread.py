"""How far rounding alone moves a recorded update: the reference again, from weights rounded anew.

A recording is one float32 run. Where an optimizer divides by small gradients, or a cap is near, it
may be closer to the truth by luck than the next run, such as one by another processor's matrix
products. A value a little beyond the budget of the recording alone is therefore judged by the
widest of several runs before it is called different.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn

from sdpo.parity.cases.stage_trace import StageTrace
from sdpo.parity.cases.tensor_distances import largest_by_kind
from sdpo.parity.compare.comparison import Comparison
from sdpo.parity.compare.statuses import Status
from sdpo.parity.truth.tolerances import TOLERANCES


def a_little_over(found: Iterable[Comparison]) -> bool:
    """Whether something is over its budget, and nothing is by more than further runs explain."""
    used = [comparison.budget_used for comparison in found if comparison.status == Status.DIVERGENT]
    return bool(used) and min(used) > 1 and max(used) <= TOLERANCES.update_rerun_reach


@torch.no_grad()
def round_anew(modules: Sequence[nn.Module | None], seed: int) -> None:
    """Move each weight, in place, by one unit in the last place down, up or not at all.

    Args:
        modules: floating weights, moved in their order; None is passed over.
        seed: of the choice.
    """
    random = torch.Generator().manual_seed(seed)
    for module in modules:
        for weight in [] if module is None else module.parameters():
            way = torch.randint(-1, 2, weight.shape, generator=random)
            goal = torch.where(way == 0, weight, way.to(weight.dtype) * torch.inf)
            weight.copy_(torch.nextafter(weight, goal))


def widest(
    runs: Iterable[StageTrace],
    recorded: StageTrace,
    errors_of: Callable[[StageTrace], dict[str, float]],
) -> dict[str, float]:
    """Of each kind of value the largest error of the recording and of all runs.

    A run that takes other entries of the vocabulary than the recording is left out: its values are
    not those of the same entries.

    Args:
        runs: of the transcription.
        recorded: the recording.
        errors_of: the errors of one of them, by kind.
    """
    alike = [recorded, *(run for run in runs if _same_choices(run, recorded))]
    return largest_by_kind(pair for run in alike for pair in errors_of(run).items())


def _same_choices(run: StageTrace, recorded: StageTrace) -> bool:
    """Whether all tensors of integers that both hold agree."""
    integers = {p: v for p, v in run.compared().items() if not v.is_floating_point()}
    return all(torch.equal(v, recorded[p]) for p, v in integers.items() if p in recorded)
