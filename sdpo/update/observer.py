"""The seam through which audits and recorders watch the updates of a trainer."""

from typing import Protocol

from torch import Tensor, nn

from sdpo.prompt.teacher_batch import PromptTrace
from sdpo.runtime.json_values import Json
from sdpo.update.actor_update import Batch
from sdpo.update.rollouts import Rollouts, TRLBatch


class UpdateObserver(Protocol):
    """Is told what an update is made of, in this order; a subclass defines what it wants to hear.

    Nothing that is handed over may be changed. Micro-batches and gradients are told in training
    only, rollouts also in evaluation.
    """

    def on_rollouts(self, rollouts: Rollouts, trace: PromptTrace, batch: TRLBatch) -> None:
        """Hear of a new generation: its rollouts, the teacher prompt's stages, TRL's batch."""

    def on_micro_batch_begin(self, inputs: TRLBatch) -> None:
        """Hear of a micro-batch before its loss is computed, as TRL has it."""

    def on_micro_batch_end(
        self, batch: Batch, values: dict[str, Tensor], scale: Tensor | float
    ) -> None:
        """Hear of a micro-batch's loss: its rows, the stages' values by name, the loss's factor."""

    def on_gradients(self, model: nn.Module) -> None:
        """Hear of the gradients of an optimizer step, complete and not yet clipped."""

    def counters(self) -> dict[str, Json]:
        """Return what a checkpoint must remember of this observer, as JSON."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint must hold for this observer."""
        return {}

    def resume(self, counters: dict[str, Json], tensors: dict[str, Tensor]) -> None:
        """Go on as after `counters` and `tensors` of a checkpoint."""
