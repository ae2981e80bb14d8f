"""The reference loss in exchangeable parts.

Each part is a function of a `LossState`, made of functions of `sdpo.reference.loss`; with all parts
in place the composition gives the reference's bits. A fault exchanges one part or two.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from sdpo.reference import loss as reference
from sdpo.settings.config import SDPOConfig


@dataclass
class LossState:
    """Inputs of one evaluation and the values computed so far, in the order of the parts.

    `scaled_student`, `scaled_teacher` are logits ÷ temperature; `student_log_probs`,
    `teacher_log_probs` those of the sampled tokens; `student_support`, `teacher_support` those on
    the support, later with tail; `token_losses` the divergences, later weighted.
    """

    config: SDPOConfig
    student_logits: Tensor
    teacher_logits: Tensor
    responses: Tensor
    response_mask: Tensor
    old_log_probs: Tensor | None = None
    self_distillation_mask: Tensor | None = None
    rollout_is_weights: Tensor | None = None
    recorded_choice: Tensor | None = None
    scaled_student: Tensor = field(init=False)
    scaled_teacher: Tensor = field(init=False)
    student_log_probs: Tensor = field(init=False)
    teacher_log_probs: Tensor = field(init=False)
    support_indices: Tensor = field(init=False)
    student_support: Tensor = field(init=False)
    teacher_support: Tensor = field(init=False)
    token_losses: Tensor = field(init=False)
    loss_mask: Tensor = field(init=False)
    loss: Tensor = field(init=False)
    from_log_probs: bool = False

    @property
    def uses_topk(self) -> bool:
        """Whether the divergence is taken over a top-k support."""
        return self.config.full_logit_distillation and self.config.distillation_topk is not None

    @property
    def support_size(self) -> int:
        """K, limited to the vocabulary."""
        return min(self.config.distillation_topk or 0, self.scaled_student.size(-1))


LossPart = Callable[[LossState], Any]
LossParts = Mapping[str, LossPart]
FaultParts = Mapping[str, LossParts]
"""The parts that faults exchange, by the id of the fault."""
Pair = tuple[Tensor, Tensor]
"""A value of the student and the same of the teacher."""


def scaled_logits(state: LossState) -> Pair:
    """Divide both sides' logits by the temperature; the teacher's have no gradient."""
    temperature = state.config.temperature
    return state.student_logits / temperature, (state.teacher_logits / temperature).detach()


def log_probs(state: LossState) -> Pair:
    """Take the log-probs of the sampled tokens."""
    return (
        reference.log_probs_from_logits(state.scaled_student, state.responses),
        reference.log_probs_from_logits(state.scaled_teacher, state.responses),
    )


def support_indices(state: LossState) -> Tensor:
    """Choose the support: the indices of the student's largest logits."""
    return reference.topk_log_probs(
        state.scaled_student, state.support_size, state.recorded_choice
    )[1]


def support(state: LossState) -> Pair:
    """Take the log-probs on the support, or on the full vocabulary."""
    student, teacher = state.scaled_student, state.scaled_teacher
    if not state.uses_topk:
        return F.log_softmax(student, dim=-1), F.log_softmax(teacher, dim=-1)
    size, indices = state.support_size, state.support_indices
    return (
        reference.topk_log_probs(student, size, indices)[0],
        reference.topk_log_probs(teacher, size, indices)[0],
    )


def tail(state: LossState) -> Pair:
    """Complete top-k log-probs by their tail, or renormalise them."""
    add_tail = state.config.distillation_add_tail
    complete = reference.add_tail if add_tail else reference.renormalize
    return complete(state.student_support), complete(state.teacher_support)


def divergence(state: LossState) -> Tensor:
    """Compute the divergence of each token over the support."""
    return reference.divergence(state.student_support, state.teacher_support, state.config.alpha)


def sampled_divergence(state: LossState) -> Tensor:
    """Compute the surrogate of sampled-token mode."""
    difference = state.student_log_probs - state.teacher_log_probs
    return difference.detach() * state.student_log_probs


def importance_ratio(state: LossState) -> Tensor:
    """Compute the clipped importance ratio.

    Raises:
        ValueError: old log-probs are missing.
    """
    if state.old_log_probs is None or state.config.is_clip is None:
        raise ValueError("is_clip needs old_log_probs")
    return reference.importance_ratio(
        state.student_log_probs, state.old_log_probs, state.config.is_clip
    )


def rollout_weights(state: LossState) -> Tensor | None:
    """Return the rollout weights as given."""
    return state.rollout_is_weights


def loss_mask(state: LossState) -> Tensor:
    """Weigh each token: response mask times distillation mask."""
    if state.self_distillation_mask is None:
        return state.response_mask
    return state.response_mask * state.self_distillation_mask.unsqueeze(1)


def aggregate(state: LossState) -> Tensor:
    """Reduce the token losses to one number."""
    tokens = state.loss_mask.sum().clamp(min=1.0)
    mode = state.config.loss_agg_mode
    return reference.agg_loss(state.token_losses, state.loss_mask, mode, tokens)


def returned_loss(state: LossState) -> Tensor:
    """Return the loss as it is handed to differentiation."""
    return state.loss


REFERENCE: LossParts = MappingProxyType(
    {
        "scaled_logits": scaled_logits,
        "log_probs": log_probs,
        "support_indices": support_indices,
        "support": support,
        "tail": tail,
        "divergence": divergence,
        "sampled_divergence": sampled_divergence,
        "importance_ratio": importance_ratio,
        "rollout_weights": rollout_weights,
        "loss_mask": loss_mask,
        "aggregate": aggregate,
        "returned_loss": returned_loss,
    }
)
FROM_LOGITS_ONLY = frozenset({"scaled_logits", "log_probs", "support_indices", "support"})
"""Parts that a loss which is given log-probs does not have."""


def with_exchanged(changes: LossParts) -> LossParts:
    """Return the reference's parts with some exchanged.

    Raises:
        KeyError: a name that is no part.
    """
    if unknown := changes.keys() - REFERENCE.keys():
        raise KeyError(f"{sorted(unknown)} are no parts; there are {list(REFERENCE)}")
    return {**REFERENCE, **changes}


def evaluate_logits(state: LossState, parts: LossParts, trace: dict[str, Tensor]) -> None:
    """Evaluate the parts from logits to log-probs on the support, and add them to the trace."""
    state.scaled_student, state.scaled_teacher = parts["scaled_logits"](state)
    state.student_log_probs, state.teacher_log_probs = parts["log_probs"](state)
    trace["log_probs.student"] = state.student_log_probs
    trace["log_probs.teacher"] = state.teacher_log_probs
    if state.config.full_logit_distillation:
        if state.uses_topk:
            state.support_indices = trace["support.indices"] = parts["support_indices"](state)
        state.student_support, state.teacher_support = parts["support"](state)
        trace["support.student"] = state.student_support
        trace["support.teacher"] = state.teacher_support


def evaluate_log_probs(state: LossState, parts: LossParts, trace: dict[str, Tensor]) -> Tensor:
    """Evaluate the parts from log-probs to the loss, and add them to the trace."""
    state.loss_mask = parts["loss_mask"](state)
    if state.uses_topk:
        state.student_support, state.teacher_support = parts["tail"](state)
        trace["tail.student"] = state.student_support
        trace["tail.teacher"] = state.teacher_support
    form = "divergence" if state.config.full_logit_distillation else "sampled_divergence"
    state.token_losses = trace["divergence"] = parts[form](state)
    if state.config.is_clip is not None:
        state.token_losses = state.token_losses * parts["importance_ratio"](state)
    if (weights := parts["rollout_weights"](state)) is not None:
        state.token_losses = state.token_losses * weights
    trace["importance"] = state.token_losses
    state.loss = trace["aggregate"] = parts["aggregate"](state)
    return parts["returned_loss"](state)
