"""An update of a running training, repeated by the reference on a replica.

`Replica` has the candidate's state at the update's beginning; `Surroundings` is what the trainer
decides beside the loss. What the reference computes becomes a `StageTrace`, as what the trainer
computes does. Nothing here knows of TRL. Symbols: `B` rows, `T` response width.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdpo.lockstep.chunked_logit_outputs import outputs_by_piece
from sdpo.lockstep.lora_reference_teacher import DenseTeacher, effective
from sdpo.lockstep.replica import OneByOne, Replica, State, Weights, refreshed, weights_of
from sdpo.parity.cases.run_reference import TraceHooks, in_dtype, run_reference_updates
from sdpo.parity.cases.stage_trace import NO_STAGE, SCALED_LOSS, Moment, StageTrace
from sdpo.parity.cases.tensor_distances import Match, match
from sdpo.parity.cases.value_names import UPDATE_SETTINGS
from sdpo.reference.update import UpdateSettings
from sdpo.settings.config import SDPOConfig
from sdpo.settings.stage_settings import POLICY_TERMS

_REFERENCE_SETTINGS = (*UPDATE_SETTINGS, *POLICY_TERMS, "loss_agg_mode", "grad_clip")
RandomState = list[Tensor]


@dataclass
class RepeatedUpdate:
    """What the reference computed in an update, and where it began.

    `matches` says of each optimizer step how the other side's gradient agrees, once they were
    compared. `start` are the student's weights before the update, `followed_start` those that the
    teacher follows: the same, or the student's effective ones.
    """

    trace: StageTrace
    matches: list[Match] = field(default_factory=list)
    start: Weights = field(default_factory=dict)
    followed_start: Weights = field(default_factory=dict)


@dataclass
class Surroundings:
    """What the candidate's trainer decides beside the loss, for the reference to follow.

    Args:
        rates: learning rates of the optimizer's groups at each optimizer step; none keeps them.
        share: of the SDPO loss in a mixture with another loss.
        weights: factor of the loss at each optimizer step; none for 1.
        random: generator states at the beginning of each micro-batch, where dropout draws.
        before_step: adds to the gradients, or averages them over processes; gets the model and the
            number of the optimizer step.
    """

    rates: Sequence[list[float]] = ()
    share: float = 1.0
    weights: Sequence[float] = ()
    random: Sequence[RandomState] = ()
    before_step: Callable[[nn.Module, int], None] = lambda model, number: None

    def weight(self, number: int) -> float:
        """Return the factor of the loss at an optimizer step."""
        return self.weights[number] if self.weights else 1.0


class BatchSizes(NamedTuple):
    """How an update goes through its batch.

    `mini_batch_size` rows for each optimizer step, `micro_batch_size` for each forward pass,
    `epochs` passes; responses are padded to `width`, which `seq-mean-token-sum-norm` divides by.
    """

    mini_batch_size: int
    micro_batch_size: int
    epochs: int
    width: int | None = None


class LockstepHooks(TraceHooks):
    """Puts the reference into the surroundings of the candidate, and keeps what it computes.

    Args:
        surroundings: what the candidate's trainer decides.
        replica: what is trained.
        width: of the responses; per-token values of padding behind them are left out.
        against: the candidate's trace of the update; then only the match of the gradients is kept.
    """

    def __init__(
        self,
        surroundings: Surroundings,
        replica: Replica,
        width: int,
        against: StageTrace | None = None,
    ):
        super().__init__()
        self.surroundings, self.replica, self.width = surroundings, replica, width
        self.against, self.matches = against, []
        self.micro_batches = 0

    def micro_batch(self, step: int, micro_batch: int) -> contextlib.AbstractContextManager[None]:
        """Draw what the candidate drew."""
        states = self.surroundings.random
        return replayed(states[self.micro_batches] if states else None)

    def values(self, step: int, micro_batch: int, values: Mapping[str, Tensor]) -> None:
        """Copy a micro-batch's values, without those of padding."""
        self.micro_batches += 1
        real = {n: v[:, : self.width] if v.dim() > 1 else v for n, v in values.items()}
        super().values(step, micro_batch, real)

    def loss(self, step: int, loss: Tensor) -> Tensor:
        """Give the SDPO loss its factors in the candidate's."""
        factor = self.surroundings.share * self.surroundings.weight(step)
        return loss if factor == 1 else loss * factor

    def before_step(self, step: int, actor: nn.Module) -> None:
        """Complete the gradient, keep it or its match, and set the learning rates."""
        self.surroundings.before_step(actor, step)
        gradient = {n: p.grad.detach() for n, p in actor.named_parameters() if p.grad is not None}
        if self.against is None:
            memory = self.replica.gradients
            memory[step] = refreshed(memory.get(step), gradient)
            self.trace.put(self.at, memory[step], "accumulate")
        else:
            self.matches.append(match(self.against.named("accumulate", 0, step), gradient))
        if rates := self.surroundings.rates:
            for group, lr in zip(self.replica.optimizer.param_groups, rates[step], strict=True):
                group["lr"] = lr

    def after_step(self, step: int, actor: nn.Module, norm: float) -> None:
        """Keep the weights; those after the last step are the replica's own."""
        last = step + 1 == len(self.surroundings.rates)
        self.trace.put(self.at, weights_of(actor, copied=not last), "optimizer")

    def averaged(self, teacher: nn.Module, actor: nn.Module) -> tuple[nn.Module, nn.Module]:
        """Average the trained weights alone: replicas share the frozen ones."""
        if isinstance(teacher, DenseTeacher):
            return teacher.sides(actor)
        return _trained(teacher), _trained(actor)

    def after_update(self, actor: nn.Module, teacher: nn.Module | None) -> None:
        """Copy nothing: the replica's own weights are looked at."""


def _trained(module: nn.Module) -> nn.Module:
    """Collect the trained weights of a module, for functions that go through all parameters."""
    return nn.ParameterList([p for p in module.parameters() if p.requires_grad])


def random_state() -> RandomState:
    """Read the states of the generators that dropout draws from."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return [torch.get_rng_state(), *cuda]


@contextlib.contextmanager
def replayed(state: RandomState | None) -> Iterator[None]:
    """Draw from given generator states; the present ones come back. None changes nothing."""
    if state is None:
        yield
        return
    with torch.random.fork_rng():
        torch.set_rng_state(state[0])
        if state[1:]:
            torch.cuda.set_rng_state_all(state[1:])
        yield


def reference_update(
    replica: Replica,
    batch: Mapping[str, Tensor],
    config: SDPOConfig,
    sizes: BatchSizes,
    *,
    surroundings: Surroundings,
    start: State,
    against: StageTrace | None = None,
) -> RepeatedUpdate:
    """Make one update by the reference; it changes the replica, which the result refers to.

    Args:
        replica: whose weights are updated.
        batch: rows of the whole update under the reference's names.
        config: settings; `temperature` included, `is_clip` as the user gave it.
        sizes: how the update goes through the batch.
        surroundings: what else is done to the candidate.
        start: the state before the update.
        against: see `LockstepHooks`.
    """
    settings = UpdateSettings(
        ppo_mini_batch_size=sizes.mini_batch_size,
        ppo_micro_batch_size_per_gpu=sizes.micro_batch_size,
        ppo_epochs=sizes.epochs,
        **{name: getattr(config, name) for name in _REFERENCE_SETTINGS},
    )
    if isinstance(replica.optimizer, OneByOne):
        replica.optimizer.steps = len(surroundings.rates)
    dense = isinstance(replica.teacher, DenseTeacher)
    followed = effective(replica.student) if dense else start.student
    width = batch["responses"].shape[1]
    hooks = LockstepHooks(surroundings, replica, width, against)
    replica.answers(width if sizes.width is None else sizes.width)
    optimizer: Any = replica.optimizer
    run_reference_updates(
        replica.student,
        replica.teacher,
        optimizer,
        settings,
        config.temperature,
        [(in_dtype(_reference_rows(batch, sizes.width), replica.dtype), None)],
        hooks=hooks,
        outputs=outputs_by_piece,
    )
    trace, scale = hooks.trace, 1 / (sizes.mini_batch_size // sizes.micro_batch_size)
    for step in trace.steps():
        losses = [values["aggregate"].item() for values in trace.micro_batches(0, step)]
        scaled = sum(losses) * scale * surroundings.weight(step)
        trace.put(Moment(0, step, len(losses) - 1), {SCALED_LOSS: scaled}, NO_STAGE)
    trace.put(hooks.at, replica.teacher_weights(start.teacher), "teacher_update")
    return RepeatedUpdate(trace, hooks.matches, start.student, followed)


def _reference_rows(batch: Mapping[str, Tensor], width: int | None) -> dict[str, Tensor]:
    """Prepare the rows as the reference takes them: all tensors present, padded to a width."""
    blank = torch.zeros_like(batch["responses"]).float()
    rows = {"old_log_probs": blank, "advantages": blank, **batch}
    more = 0 if width is None else width - batch["responses"].shape[1]
    return {n: F.pad(t, (0, more)) if more and t.dim() > 1 else t for n, t in rows.items()}
