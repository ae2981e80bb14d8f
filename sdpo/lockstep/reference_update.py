"""Updates of a running training, repeated by the reference: what both sides did, in order.

A `Record` holds what one side did during an update. The candidate's is filled while it trains, the
reference's by `reference_update` on a `Replica` with the candidate's state at the update's
beginning. Nothing here knows of TRL. Symbols: `B` rows, `T` response width.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdpo.lockstep.chunked_logit_outputs import outputs_by_piece
from sdpo.lockstep.lora_reference_teacher import DenseTeacher, effective
from sdpo.lockstep.replica import OneByOne, Replica, State, Weights, refreshed, weights_of
from sdpo.parity.cases.value_names import PROMPT_SETTINGS, UPDATE_SETTINGS
from sdpo.parity.compare.tensor_distances import Match, match
from sdpo.reference.loss import rollout_is_weights
from sdpo.reference.teacher_prompt import build_teacher_batch, set_tokenizer_sides
from sdpo.reference.update import (
    MODEL_INPUTS,
    Actor,
    TrustRegionTeacher,
    UpdateSettings,
    forward_micro_batch,
)
from sdpo.settings.config import SDPOConfig

OUR_NAMES = {
    "student_log_probs": "log_probs.student",
    "teacher_log_probs": "log_probs.teacher",
    "student_topk_log_probs": "support.student",
    "teacher_topk_log_probs": "support.teacher",
    "student_all_log_probs": "support.student",
    "teacher_all_log_probs": "support.teacher",
    "student_support": "tail.student",
    "teacher_support": "tail.teacher",
    "divergence": "divergence",
    "per_token_loss": "importance",
    "loss_mask": "loss_mask",
    "loss": "aggregate",
}
"""Names of the reference's values on the left, of the stages' values on the right."""

REFERENCE_SETTINGS = (*UPDATE_SETTINGS, "loss_agg_mode", "grad_clip")
RandomState = list[Tensor]


@dataclass
class Step:
    """One optimizer step: values of its micro-batches, gradient before clipping, weights after.

    `teacher_moved` tells whether the teacher was another one than at the update's beginning when a
    micro-batch was processed. `random` are the generators' states before the SDPO loss of each
    micro-batch and behind it, None where nothing draws. `match` is how the gradient agrees with the
    other side's, once they were compared.
    """

    micro_batches: list[dict[str, Tensor]] = field(default_factory=list)
    inputs: list[Any] = field(default_factory=list)
    random: list[tuple[RandomState | None, RandomState | None]] = field(default_factory=list)
    scaled_loss: float = 0.0
    teacher_moved: bool = False
    gradient: Weights = field(default_factory=dict)
    match: Match | None = None
    weights: Weights = field(default_factory=dict)

    def rows(self, name: str) -> Tensor:
        """A per-token value of all micro-batches, `(B, …)`."""
        return torch.cat([values[name] for values in self.micro_batches])


@dataclass
class Record:
    """What one side did during an update; `start` are the student's weights before it.

    `teacher_start` are those that the teacher follows: the same, or the student's effective ones.
    """

    start: Weights = field(default_factory=dict)
    teacher_start: Weights = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    teacher: Weights = field(default_factory=dict)
    prompts: dict[str, Any] = field(default_factory=dict)


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
        """Factor of the loss at an optimizer step."""
        return self.weights[number] if self.weights else 1.0


@dataclass
class RecordingActor(Actor):
    """The reference's actor in given surroundings; keeps gradients and weights of each step.

    With `against`, another record of the same update, only the match of the gradients is kept.
    """

    surroundings: Surroundings = field(default_factory=Surroundings)
    against: "Record | None" = None
    memory: dict[int, Weights] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)

    def _micro_batch(
        self,
        batch: dict[str, Tensor],
        temperature: float,
        on_policy: bool,
        scale: float,
        label: str,
    ) -> None:
        states = self.surroundings.random
        with replayed(states[int(label.removeprefix("mb"))] if states else None):
            super()._micro_batch(batch, temperature, on_policy, scale, label)

    def _with_entropy_and_kl(
        self, pg_loss: Tensor, student: dict[str, Tensor], batch: dict[str, Tensor], scale: float
    ) -> Tensor:
        factor = self.surroundings.share * self.surroundings.weight(len(self.steps))
        loss = super()._with_entropy_and_kl(pg_loss, student, batch, scale)
        return loss if factor == 1 else loss * factor

    def _optimizer_step(self, label: str) -> float:
        number, step = len(self.steps), Step()
        self.surroundings.before_step(self.actor_module, number)
        named = self.actor_module.named_parameters()
        gradient = {n: p.grad.detach() for n, p in named if p.grad is not None}
        if self.against is None:
            step.gradient = refreshed(self.memory.get(number), gradient)
            self.memory[number] = step.gradient
        else:
            step.match = match(self.against.steps[number].gradient, gradient)
        rates = self.surroundings.rates
        if rates:
            for group, lr in zip(self.actor_optimizer.param_groups, rates[number], strict=True):
                group["lr"] = lr
        norm = super()._optimizer_step(label)
        last = number + 1 == len(rates)
        step.weights = weights_of(self.actor_module, copied=not last)
        self.steps.append(step)
        return norm

    def _update_teacher(self) -> None:
        """The average of the trained weights alone: replicas share the frozen ones."""
        whole = self.teacher_module, self.actor_module
        assert self.teacher_module is not None
        if isinstance(self.teacher_module, DenseTeacher):
            sides = self.teacher_module.sides(self.actor_module)
        else:
            sides = trained(self.teacher_module), trained(self.actor_module)
        self.teacher_module, self.actor_module = sides
        try:
            super()._update_teacher()
        finally:
            self.teacher_module, self.actor_module = whole

    def _record(self, label: str, tensors: Mapping[str, Tensor | None]) -> None:
        if label.startswith("mb"):  # weights and gradients are kept above, with fewer copies
            super()._record(label, tensors)


def trained(module: nn.Module) -> nn.Module:
    """The trained weights of a module, for functions that go through all parameters."""
    return nn.ParameterList([p for p in module.parameters() if p.requires_grad])


def random_state() -> RandomState:
    """States of the generators that dropout draws from."""
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


def reference_prompts(
    responses: Tensor,
    response_mask: Tensor,
    rewards: Tensor,
    prompts: Sequence[Any],
    feedbacks: Sequence[Any],
    tokenizer: Any,
    config: SDPOConfig,
    *,
    uids: Sequence[int],
    template_kwargs: Mapping[str, Any],
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The teacher's inputs as the reference builds them, and its stage values.

    `uids` are equal for the rows of a group.
    """
    own = copy.deepcopy(tokenizer)
    settings = {name: getattr(config, name) for name in PROMPT_SETTINGS}
    set_tokenizer_sides(own, settings)
    batch = build_teacher_batch(
        responses,
        response_mask,
        rewards.unsqueeze(-1),
        [[dict(message) for message in prompt] for prompt in prompts],
        uids,
        {"feedback": list(feedbacks)},
        own,
        loss_mode="sdpo",
        self_distillation=settings,
        apply_chat_template_kwargs=template_kwargs,
    )
    assert batch is not None
    return batch.tensors, batch.trace


@torch.no_grad()
def reference_corrections(
    replica: Replica,
    batch: Mapping[str, Tensor],
    config: SDPOConfig,
    size: int,
    *,
    sampled: Tensor | None,
) -> dict[str, Tensor]:
    """`old_log_probs` `(B, T)` by the reference before an update, and `rollout_is_weights`.

    Args:
        replica: at the state before the update.
        batch: rows of the whole update under the reference's names.
        config: settings; `temperature` included.
        size: rows per forward pass.
        sampled: the sampler's log-probs `(B, T)`; None for no weights. A token that it could not
            score, NaN, gets the weight 1, which the reference has no rule for.
    """
    training, names = replica.student.training, (*MODEL_INPUTS, "responses")
    replica.answers(batch["responses"].shape[1])
    replica.student.eval()
    parts = zip(*(batch[name].split(size) for name in names), strict=True)
    found = [
        forward_micro_batch(
            replica.student,
            dict(zip(names, part, strict=True)),
            config.temperature,
            outputs=outputs_by_piece,
        )["log_probs"]
        for part in parts
    ]
    replica.student.train(training)
    old = torch.cat(found)
    corrected = {"old_log_probs": old}
    limit = config.rollout_is_threshold
    if sampled is not None and limit is not None and batch["response_mask"].any():
        known = torch.where(sampled.isnan(), old, sampled.to(old.dtype))
        weights = rollout_is_weights(old, known, batch["response_mask"], limit)
        corrected["rollout_is_weights"] = weights
    return corrected


def reference_update(
    replica: Replica,
    batch: Mapping[str, Tensor],
    config: SDPOConfig,
    *,
    mini_batch_size: int,
    micro_batch_size: int,
    epochs: int,
    surroundings: Surroundings,
    start: State,
    width: int | None = None,
    against: Record | None = None,
) -> Record:
    """One update by the reference; changes the replica, whose tensors the record refers to.

    Args:
        replica: whose weights are updated.
        batch: rows of the whole update under the reference's names.
        config: settings; `temperature` included, `is_clip` as the user gave it.
        mini_batch_size: rows per optimizer step.
        micro_batch_size: rows per forward pass.
        epochs: passes over the batch.
        surroundings: what else is done to the candidate.
        start: the state before the update.
        width: responses are padded to it, which `seq-mean-token-sum-norm` divides by.
        against: another record of this update; see `RecordingActor`.
    """
    settings = UpdateSettings(
        ppo_mini_batch_size=mini_batch_size,
        ppo_micro_batch_size_per_gpu=micro_batch_size,
        ppo_epochs=epochs,
        **{name: getattr(config, name) for name in REFERENCE_SETTINGS},
    )
    teacher = replica.teacher
    if config.teacher_regularization == "trust-region":
        teacher = TrustRegionTeacher(teacher, replica.student, config.teacher_update_rate)
    if isinstance(replica.optimizer, OneByOne):
        replica.optimizer.steps = len(surroundings.rates)
    dense = isinstance(replica.teacher, DenseTeacher)
    followed = effective(replica.student) if dense else start.student
    optimizer: Any = replica.optimizer
    trace: dict[str, Tensor] = {}
    actor = RecordingActor(
        replica.student,
        optimizer,
        settings,
        teacher,
        trace,
        surroundings=surroundings,
        against=against,
        memory=replica.gradients,
        outputs=outputs_by_piece,
    )
    replica.answers(batch["responses"].shape[1] if width is None else width)
    actor.update_policy(reference_rows(batch, replica.dtype, width), config.temperature)
    scale = 1 / (mini_batch_size // micro_batch_size)
    minis = len(actor.steps)
    micros = len({name.split(".")[1] for name in trace})
    real = batch["responses"].shape[1]
    for number, step in enumerate(actor.steps):
        span = range(number * micros // minis, (number + 1) * micros // minis)
        step.micro_batches = [cropped(named(trace, f"u0.mb{micro}."), real) for micro in span]
        losses = [values["aggregate"].item() for values in step.micro_batches]
        step.scaled_loss = sum(losses) * scale * surroundings.weight(number)
    teacher_after = replica.teacher_weights(start.teacher)
    return Record(start.student, followed, actor.steps, teacher_after)


def reference_rows(
    batch: Mapping[str, Tensor], dtype: torch.dtype, width: int | None
) -> dict[str, Tensor]:
    """The rows as the reference takes them: all tensors present, floats of one dtype, padded."""
    blank = torch.zeros_like(batch["responses"]).float()
    rows = {"old_log_probs": blank, "advantages": blank, **batch}
    rows = {n: t.to(dtype) if t.is_floating_point() else t for n, t in rows.items()}
    more = 0 if width is None else width - batch["responses"].shape[1]
    return {n: F.pad(t, (0, more)) if more and t.dim() > 1 else t for n, t in rows.items()}


def cropped(values: dict[str, Tensor], width: int) -> dict[str, Tensor]:
    """Per-token values at the first `width` tokens."""
    return {name: value[:, :width] if value.dim() > 1 else value for name, value in values.items()}


def named(trace: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The values below a prefix, under the names of the stages."""
    found = {n.removeprefix(prefix): t for n, t in trace.items() if n.startswith(prefix)}
    return {OUR_NAMES[n]: t for n, t in found.items() if n in OUR_NAMES}
