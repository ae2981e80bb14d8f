"""How far rounding alone moves a recorded update: the reference again, from weights rounded anew.

A recording is one float32 run. Where an optimizer divides by small gradients, or a cap is near, it
may be closer to the truth by luck than the next run, such as one by another processor's matrix
products. A value a little beyond the budget of the recording alone is therefore judged by the
widest of several runs before it is called different.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

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
    runs: Iterable[Mapping[str, Tensor]],
    recorded: Mapping[str, Tensor],
    spread_of: Callable[[Mapping[str, Tensor]], dict[str, float]],
) -> dict[str, float]:
    """Per kind of value, the largest distance from the truth of the recording and all runs.

    A run that takes other entries of the vocabulary than the recording is left out: its values are
    not those of the same entries.

    Args:
        runs: tensors under the golden names.
        recorded: the same of the recording.
        spread_of: distances per kind of one of them.
    """
    found = spread_of(recorded)
    for run in runs:
        if same_choices(run, recorded):
            for kind, distance in spread_of(run).items():
                found[kind] = max(found.get(kind, 0.0), distance)
    return found


def same_choices(run: Mapping[str, Tensor], recorded: Mapping[str, Tensor]) -> bool:
    """Whether all tensors of integers that are compared agree."""
    named = [name for name in run if name in recorded and not run[name].is_floating_point()]
    return all(torch.equal(run[name], recorded[name]) for name in named)
