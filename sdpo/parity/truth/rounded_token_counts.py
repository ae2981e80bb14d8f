"""A mask whose dtype cannot hold the number of its tokens: counts of the reference are rounded.

The reference adds the mask up in the mask's own dtype: 301 tokens of a bfloat16 mask are 300. A
loss that counts them exactly is right, and so is one that counts as the reference does.
"""

from dataclasses import replace

import torch

from sdpo.parity.cases.loss_case import LossCase


def counting_exactly(case: LossCase) -> LossCase | None:
    """Give a case masks whose sums are exact; None if they are already.

    What was recorded goes, but for the choice of the support: it was made with the other counts.
    """
    mask = case.loss_mask
    if not mask.is_floating_point() or (_rounded(mask) == _exact(mask)).all():
        return None
    indices = case.recorded.get("support.indices")
    rows = case.self_distillation_mask
    return replace(
        case,
        response_mask=case.response_mask.float(),
        self_distillation_mask=None if rows is None else rows.float(),
        recorded={} if indices is None else {"support.indices": indices},
    )


def _rounded(mask: torch.Tensor) -> torch.Tensor:
    """Count the tokens of each row and of all, as the mask's dtype has it, `(B + 1,)`."""
    return torch.cat([mask.sum(-1), mask.sum()[None]]).double()


def _exact(mask: torch.Tensor) -> torch.Tensor:
    """Count the tokens of each row and of all, `(B + 1,)` float64."""
    return torch.cat([mask.double().sum(-1), mask.double().sum()[None]])


def difference(case: LossCase) -> str:
    """Say how a loss that counts exactly differs from the reference."""
    mask = case.loss_mask
    first = int((_rounded(mask) != _exact(mask)).nonzero()[0])
    dtype = str(mask.dtype).removeprefix("torch.")
    return (
        f"counts {_exact(mask)[first]:g} tokens, of which the reference's {dtype} mask makes "
        f"{_rounded(mask)[first]:g}"
    )
