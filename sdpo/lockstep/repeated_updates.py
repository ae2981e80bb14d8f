"""Updates of the trainer as they were recorded, and their repetition by the reference."""

import copy
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from trl import GRPOTrainer  # pyright: ignore[reportPrivateImportUsage]

from sdpo.lockstep import trainer_snapshot
from sdpo.lockstep.reference_inputs import log_probs_of, reference_corrections
from sdpo.lockstep.reference_update import RepeatedUpdate, Surroundings, reference_update, replayed
from sdpo.lockstep.replica import Replica, State, Weights, weights_of
from sdpo.lockstep.trainer_snapshot import StepInputs
from sdpo.parity.cases.stage_trace import Moment, StageTrace
from sdpo.parity.cases.tensor_distances import distance

if TYPE_CHECKING:
    from sdpo.trainer.sdpo_trainer import SDPOTrainer


@dataclass
class RecordedUpdate:
    """What an update of the trainer is made of, as far as it has come.

    `anchor` are the weights of the reference policy, if the loss has a KL term to one. `batch` are
    its rows under the reference's names, `sampled` the sampler's log-probs `(B, T)`, if
    known, `weights` the factor of the loss at each optimizer step, `prompt_values` what the
    reference makes of the prompts, by stage. `steps` and `rates` grow by one with each optimizer
    step: its inputs, and the learning rates of the optimizer's groups.
    """

    anchor: Weights | None = None
    batch: dict[str, Tensor] = field(default_factory=dict)
    sampled: Tensor | None = None
    weights: list[float] = field(default_factory=list)
    prompt_values: Mapping[str, object] = field(default_factory=dict)
    steps: list[StepInputs] = field(default_factory=list)
    rates: list[list[float]] = field(default_factory=list)

    @property
    def moment(self) -> Moment:
        """The micro-batch that is processed, or was processed last."""
        return Moment(0, len(self.steps) - 1, len(self.steps[-1].inputs) - 1)


def repeat_update(
    trainer: "SDPOTrainer",
    update: RecordedUpdate,
    replica: Replica,
    start: State,
    against: StageTrace | None = None,
) -> RepeatedUpdate:
    """Make a recorded update again, by the reference on a replica.

    Args:
        trainer: whose update it is; read only.
        update: as it was recorded.
        replica: is updated.
        start: the state before the update.
        against: the candidate's trace; then only the match of the gradients is kept.
    """
    states = [before for step in update.steps for before, _ in step.random]
    surroundings = Surroundings(
        rates=update.rates,
        share=1 - trainer.sdpo_config.hybrid_lambda,
        weights=update.weights,
        random=[state for state in states if state is not None],
        before_step=partial(_complete_gradient, trainer, update),
    )
    computed = _before_update(trainer, replica, update.batch, update.sampled, update.anchor)
    return reference_update(
        replica,
        update.batch | computed,
        trainer_snapshot.reference_config(trainer),
        trainer_snapshot.sizes(trainer),
        surroundings=surroundings,
        start=start,
        against=against,
    )


def _complete_gradient(
    trainer: "SDPOTrainer", update: RecordedUpdate, model: nn.Module, step: int
) -> None:
    """Add what is not SDPO, then average over processes."""
    if trainer.sdpo_config.hybrid_lambda:
        _add_grpo(trainer, model, update.steps[step])
    if trainer.accelerator.num_processes > 1:
        _average_gradients(trainer, model)


def _before_update(
    trainer: "SDPOTrainer",
    replica: Replica,
    batch: Mapping[str, Tensor],
    sampled: Tensor | None,
    anchor: Weights | None,
) -> dict[str, Tensor]:
    """Compute what the reference itself needs before an update, by the settings.

    Args:
        trainer: is read.
        replica: at the state before the update.
        batch: rows of the whole update under the reference's names.
        sampled: the sampler's log-probs `(B, T)`, if they are known.
        anchor: weights of the reference policy, if there is one.
    """
    computed = _corrections(trainer, replica, batch, sampled)
    if anchor is not None:
        size = trainer.args.per_device_train_batch_size
        config = trainer_snapshot.reference_config(trainer)
        computed["ref_log_prob"] = log_probs_of(replica, batch, config, size, anchor)
    return computed


def _corrections(
    trainer: "SDPOTrainer", replica: Replica, batch: Mapping[str, Tensor], sampled: Tensor | None
) -> dict[str, Tensor]:
    """Compute old log-probs and rollout weights, where the settings need them."""
    config = trainer_snapshot.reference_config(trainer)
    weighted = sampled is not None and config.rollout_is_threshold is not None
    # one optimizer step, or several updates' worth of one, sees the weights that generated
    steps_apart = (
        trainer.args.gradient_accumulation_steps
        % trainer_snapshot.micro_batches_per_update(trainer)
    )
    off_policy = config.is_clip is not None and steps_apart != 0
    if not off_policy and not weighted:
        return {}
    size = trainer.args.per_device_train_batch_size
    return reference_corrections(replica, batch, config, size, sampled=sampled)


def _add_grpo(trainer: "SDPOTrainer", model: nn.Module, step: StepInputs) -> None:
    """Add the gradient of TRL's own GRPO loss, for all micro-batches of an optimizer step."""
    shadow = copy.copy(trainer)
    shadow._metrics = {mode: defaultdict(list) for mode in trainer._metrics}
    for inputs, (_, random) in zip(step.inputs, step.random, strict=True):
        with replayed(random):
            loss = GRPOTrainer._compute_loss(shadow, model, inputs)
        (trainer.sdpo_config.hybrid_lambda * loss).backward()


def _average_gradients(trainer: "SDPOTrainer", model: nn.Module) -> None:
    """Replace every gradient by its mean over all processes."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad /= trainer.accelerator.num_processes


class LockstepReplica:
    """A replica that the reference alone trains, from the rollouts of the trainer.

    Args:
        trainer: whose training it follows; read only.
        origin: the state that both began with.
        present: the state that the replica is in; the origin by default.
    """

    def __init__(self, trainer: "SDPOTrainer", origin: State, present: State | None = None):
        self.trainer, self.origin = trainer, origin
        self.replica = trainer_snapshot.replica_of(trainer).load(present or origin)

    def follow(self, update: RecordedUpdate) -> dict[str, float]:
        """Make the same update, and measure how far weights and teacher are from the trainer's."""
        repeat_update(self.trainer, update, self.replica, self.origin)
        teacher = trainer_snapshot.teacher_weights(self.trainer)
        mine, theirs = (
            weights_of(model, copied=False) for model in (self.trainer.model, self.replica.student)
        )
        their_teacher = self.replica.teacher_weights(teacher)
        return {
            "weights": distance(mine, theirs, self.origin.student),
            "teacher": distance(teacher, their_teacher, self.origin.teacher),
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return where the replica is and where it began, for a checkpoint."""
        replica = self.replica
        teacher = replica.teacher_weights(self.origin.teacher)
        present = State.of(replica.student, teacher, replica.optimizer)
        return present.flat("replica") | self.origin.flat("origin")

    @classmethod
    def from_tensors(
        cls, trainer: "SDPOTrainer", tensors: Mapping[str, Tensor]
    ) -> "LockstepReplica":
        """Go on from the tensors of a checkpoint."""
        origin, present = (State.from_flat(tensors, name) for name in ("origin", "replica"))
        return cls(trainer, origin, present)
