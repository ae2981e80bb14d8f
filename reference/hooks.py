"""What a caller can attach to the reference's actor update (`update.py`); not in the original."""

import contextlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class Hooks:
    """Called at fixed points of an update; these here do nothing.

    Optimizer steps are counted through the update, micro-batches through their step. The arithmetic
    between two hooks is the reference's own.
    """

    def micro_batch(self, step: int, micro_batch: int) -> contextlib.AbstractContextManager[Any]:
        """Surround a micro-batch's forward and backward pass."""
        return contextlib.nullcontext()

    def values(self, step: int, micro_batch: int, values: Mapping[str, Tensor]) -> None:
        """See a micro-batch's values, under the reference's names, before its backward pass.

        They are live tensors: what is kept must be copied.
        """

    def loss(self, step: int, loss: Tensor) -> Tensor:
        """Return what is scaled and differentiated in place of a micro-batch's loss."""
        return loss

    def before_step(self, step: int, actor: nn.Module) -> None:
        """See or change the gradients of an optimizer step before they are clipped."""

    def after_step(self, step: int, actor: nn.Module, norm: float) -> None:
        """See the weights after an optimizer step, and the norm before clipping."""

    def averaged(self, teacher: nn.Module, actor: nn.Module) -> tuple[nn.Module, nn.Module]:
        """Return the modules whose parameters are averaged, in place in the first."""
        return teacher, actor

    def after_update(self, actor: nn.Module, teacher: nn.Module | None) -> None:
        """See the weights after an update; of a trust-region teacher the frozen ones."""
