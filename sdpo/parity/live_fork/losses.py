"""The loss of a batch of logits through the fork's forward pass, loss and aggregation."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Protocol
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional

from sdpo.parity.live_fork.modules import CORE_ALGOS, live_function, live_module
from sdpo.parity.live_fork.one_process import one_process
from sdpo.parity.live_fork.settings import Settings, distillation_settings, live_actor

SETTINGS = (
    "full_logit_distillation",
    "alpha",
    "distillation_topk",
    "distillation_add_tail",
    "is_clip",
)
"""Those of the loss that belong to the fork's `SelfDistillationConfig`."""

ForwardOutputs = dict[str, Tensor]


class LossInputs(Protocol):
    """Inputs of the loss, in the dtype of the computation."""

    @property
    def student_logits(self) -> Tensor:
        """`(B, T, V)`."""
        ...

    @property
    def teacher_logits(self) -> Tensor:
        """`(B, T, V)`."""
        ...

    @property
    def responses(self) -> Tensor:
        """`(B, T)` tokens."""
        ...

    @property
    def response_mask(self) -> Tensor:
        """`(B, T)`."""
        ...

    @property
    def old_log_probs(self) -> Tensor | None:
        """`(B, T)`."""
        ...

    @property
    def self_distillation_mask(self) -> Tensor | None:
        """`(B,)`."""
        ...

    @property
    def rollout_is_weights(self) -> Tensor | None:
        """`(B, T)`."""
        ...


class LossCallError(Exception):
    """The fork's loss does not go through its aggregation once, so that nothing is seen of it."""


@dataclass
class AggregationCalls:
    """What reached the fork's `agg_loss`: the loss matrix, its mask and the count of tokens."""

    matrices: list[Tensor] = field(default_factory=list)
    masks: list[Tensor] = field(default_factory=list)
    counts: list[object] = field(default_factory=list)


@dataclass
class LiveLoss:
    """Values of one loss through the fork's functions.

    Attributes:
        student, teacher: what the forward pass returned, under the fork's names: `log_probs`, and
            `topk_logps`, `topk_indices` or `all_logps`.
        support: what the divergence is taken of, student and teacher, with the tail or
            renormalised; empty for sampled tokens.
        divergence: `(B, T)`, before ratio and rollout weights.
        per_token_loss, loss_mask: `(B, T)` as they reach the aggregation.
        batch_num_tokens: the count of tokens that is handed to it.
        loss: the scalar, with its graph to `student_logits`.
    """

    student: ForwardOutputs
    teacher: ForwardOutputs
    support: tuple[Tensor, ...]
    divergence: Tensor
    per_token_loss: Tensor
    loss_mask: Tensor
    batch_num_tokens: object
    loss: object


class GivenLogits(nn.Module):
    """A model whose answer is given: `(B, T, V)` logits, then one position that is not used."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, **_: object) -> SimpleNamespace:
        """The logits, whatever the inputs."""
        unused = torch.zeros_like(self.logits[:, :1])
        return SimpleNamespace(logits=torch.cat([self.logits, unused], 1))


def live_forward(
    inputs: LossInputs, settings: Settings, temperature: float
) -> tuple[ForwardOutputs, ForwardOutputs]:
    """Student's and teacher's log-probs by the fork's `_forward_micro_batch`.

    Args:
        inputs: of which the logits and responses are used.
        settings: of the distillation.
        temperature: of both sides.
    """
    rows, width = inputs.responses.shape
    unused = torch.zeros(rows, width + 1, dtype=torch.long)
    batch = {
        "responses": inputs.responses.clone(),
        "input_ids": unused,
        "attention_mask": unused + 1,
        "position_ids": unused,
    }
    sizes = {"ppo_mini_batch_size": rows, "ppo_micro_batch_size_per_gpu": rows}
    topk = settings["distillation_topk"] if settings["full_logit_distillation"] else None
    options = {
        "return_all_logps": settings["full_logit_distillation"] and not topk,
        "distill_topk": topk,
    }
    with one_process():
        actor = live_actor(sizes, settings, GivenLogits(inputs.student_logits))
        forward = actor._forward_micro_batch
        student = forward(dict(batch), temperature, **options)
        with torch.no_grad():
            teacher = forward(
                dict(batch),
                temperature,
                **options,
                topk_indices=student.get("topk_indices"),
                module=GivenLogits(inputs.teacher_logits.detach()),
            )
    return student, teacher


def live_loss(
    inputs: LossInputs, settings: Settings, *, temperature: float, loss_agg_mode: str
) -> LiveLoss:
    """All values of the loss, forward pass included.

    Args:
        inputs: `student_logits` gets the gradient.
        settings: those of `SETTINGS`.
        temperature: of both sides.
        loss_agg_mode: how tokens are aggregated.

    Raises:
        LossCallError: the loss calls the aggregation not once.
    """
    student, teacher = live_forward(inputs, settings, temperature)
    arguments = loss_arguments(inputs, student, teacher) | {"loss_agg_mode": loss_agg_mode}
    compute = live_function(CORE_ALGOS, "compute_self_distillation_loss")
    config = distillation_settings(settings)
    with _watched_divergence() as support, watched_aggregation() as calls:
        returned = compute(**arguments, self_distillation_config=config)
    # without ratio and weights, what reaches the aggregation is the divergence
    bare = distillation_settings({**settings, "is_clip": None})
    with watched_aggregation() as bare_calls:
        compute(**{**arguments, "rollout_is_weights": None}, self_distillation_config=bare)
    for seen in (calls, bare_calls):
        if len(seen.matrices) != 1:
            raise LossCallError(
                "compute_self_distillation_loss called agg_loss "
                f"{len(seen.matrices)} times; expected once"
            )
    full = bool(settings["full_logit_distillation"])
    return LiveLoss(
        student,
        teacher,
        _sides(support) if full else (),
        bare_calls.matrices[0].detach(),
        calls.matrices[0].detach(),
        calls.masks[0],
        calls.counts[0],
        returned[0] if isinstance(returned, tuple) else returned,
    )


def loss_arguments(
    inputs: LossInputs, student: ForwardOutputs, teacher: ForwardOutputs
) -> dict[str, Tensor | None]:
    """The tensors that the fork's loss takes, under its names."""
    given = {
        "response_mask": inputs.response_mask,
        "old_log_probs": inputs.old_log_probs,
        "self_distillation_mask": inputs.self_distillation_mask,
        "rollout_is_weights": inputs.rollout_is_weights,
    }
    arguments = {name: None if value is None else value.clone() for name, value in given.items()}
    for side, outputs in (("student", student), ("teacher", teacher)):
        arguments[f"{side}_log_probs"] = outputs["log_probs"]
        arguments[f"{side}_all_log_probs"] = outputs.get("all_logps")
        arguments[f"{side}_topk_log_probs"] = outputs.get("topk_logps")
    return arguments


@contextmanager
def watched_aggregation() -> Iterator[AggregationCalls]:
    """Note what reaches the fork's `agg_loss` while the context is open."""
    calls = AggregationCalls()
    core = live_module(CORE_ALGOS)
    aggregate = live_function(CORE_ALGOS, "agg_loss")

    def noted(loss_mat: Tensor, loss_mask: Tensor, *arguments: object, **further: object) -> object:
        calls.matrices.append(loss_mat)
        calls.masks.append(loss_mask)
        calls.counts.append(further.get("batch_num_tokens"))
        return aggregate(loss_mat, loss_mask, *arguments, **further)

    with mock.patch.object(core, "agg_loss", noted):
        yield calls


@contextmanager
def _watched_divergence() -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Note input and target of each `kl_div` while the context is open."""
    pairs: list[tuple[Tensor, Tensor]] = []
    real = functional.kl_div

    def noted(input: Tensor, target: Tensor, *arguments: Any, **further: Any) -> Tensor:
        pairs.append((input, target))
        return real(input, target, *arguments, **further)

    with mock.patch.object(functional, "kl_div", noted):
        yield pairs


def _sides(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
    """Student's and teacher's log-probs among the arguments of `kl_div`.

    One call has both; of two calls, both with the mixture as input, they are the targets. The
    student's have a graph, the teacher's have none.
    """
    sides = pairs[0] if len(pairs) == 1 else tuple(target for _, target in pairs)
    student = [side.detach() for side in sides if side.requires_grad]
    teacher = [side for side in sides if not side.requires_grad]
    return (*student, *teacher) if len(student) == len(teacher) == 1 else ()


def support_of(outputs: Mapping[str, Tensor]) -> tuple[str, Tensor] | None:
    """The log-probs on the support, `topk` or `all`, in what the forward pass returned."""
    for kind, name in (("topk", "topk_logps"), ("all", "all_logps")):
        if name in outputs:
            return kind, outputs[name]
    return None
