"""Updates of a running training, repeated by the reference: what both sides did, in order.

A `Record` holds what one side did during an update. The candidate's is filled while it trains, the
reference's by `reference_update` on a `Replica` of the candidate at the update's beginning. Nothing
here knows of TRL. Symbols: `B` rows, `T` response width.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sdpo.config import SDPOConfig
from sdpo.reference.teacher_prompt import build_teacher_batch, set_tokenizer_sides
from sdpo.reference.update import Actor, TrustRegionTeacher, UpdateSettings
from sdpo.teachers import copy_of

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

REFERENCE_SETTINGS = (
    "full_logit_distillation",
    "alpha",
    "distillation_topk",
    "distillation_add_tail",
    "is_clip",
    "teacher_regularization",
    "teacher_update_rate",
    "loss_agg_mode",
    "grad_clip",
)
PROMPT_SETTINGS = (
    "success_reward_threshold",
    "dont_reprompt_on_self_success",
    "remove_thinking_from_demonstration",
    "include_environment_feedback",
    "environment_feedback_only_without_solution",
    "max_reprompt_len",
    "reprompt_truncation",
    "reprompt_template",
    "solution_template",
    "feedback_template",
)

Weights = dict[str, Tensor]


@dataclass
class Step:
    """One optimizer step: values of its micro-batches, gradient before clipping, weights after.

    `teacher_moved` tells whether the teacher was another one than at the update's beginning when a
    micro-batch was processed.
    """

    micro_batches: list[dict[str, Tensor]] = field(default_factory=list)
    scaled_loss: float = 0.0
    teacher_moved: bool = False
    gradient: Weights = field(default_factory=dict)
    weights: Weights = field(default_factory=dict)

    def rows(self, name: str) -> Tensor:
        """A per-token value of all micro-batches, `(B, …)`."""
        return torch.cat([values[name] for values in self.micro_batches])


@dataclass
class Record:
    """What one side did during an update; `start` are the student's weights before it."""

    start: Weights = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    teacher: Weights = field(default_factory=dict)
    prompts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Replica:
    """Student, teacher and optimizer with the same state as the candidate's, but of their own."""

    student: nn.Module
    teacher: nn.Module
    optimizer: torch.optim.Optimizer

    @classmethod
    def of(
        cls,
        student: nn.Module,
        teacher: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
        dtype: torch.dtype | None = None,
    ) -> "Replica":
        """Copy a training state.

        Args:
            student: the live model.
            teacher: the teacher's weights under the student's names.
            optimizer: the live optimizer, over parameters of `student`.
            dtype: of the copies; None keeps it.
        """
        own, other = copy_of(student), copy_of(student)
        with torch.no_grad():
            for name, parameter in other.named_parameters():
                if name in teacher:
                    parameter.copy_(teacher[name])
        if dtype is not None:
            own, other = own.to(dtype), other.to(dtype)
            # The eager kernel's softmax is float32 whatever the weights are, and float64's least
            # number, which masks with it, is infinite there: rows of padding become NaN.
            for module in (own, other):
                module.set_attn_implementation("sdpa")  # pyright: ignore[reportCallIssue]
        return cls(own, other.eval(), copy_optimizer(optimizer, student, own))


def copy_optimizer(
    optimizer: torch.optim.Optimizer, student: nn.Module, own: nn.Module
) -> torch.optim.Optimizer:
    """An optimizer of the same class, settings and state, over the parameters of a copy.

    Not a deep copy: a learning-rate schedule replaces `step` on the instance by a function that
    holds the original.
    """
    names = {parameter: name for name, parameter in student.named_parameters()}
    mine = dict(own.named_parameters())
    groups = [
        {**group, "params": [mine[names[parameter]] for parameter in group["params"]]}
        for group in optimizer.param_groups
    ]
    twin = type(optimizer)(groups)  # pyright: ignore[reportCallIssue]
    # Loading casts the moments to the dtype of the parameters.
    twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return twin


@dataclass
class RecordingActor(Actor):
    """The reference's actor with learning rates for each step; keeps the weights after it."""

    rates: Sequence[list[float]] = ()
    after: list[Weights] = field(default_factory=list)

    def _optimizer_step(self, label: str) -> float:
        if self.rates:
            groups = self.actor_optimizer.param_groups
            for group, lr in zip(groups, self.rates[len(self.after)], strict=True):
                group["lr"] = lr
        norm = super()._optimizer_step(label)
        self.after.append(weights_of(self.actor_module))
        return norm


def weights_of(module: nn.Module) -> Weights:
    """Copies of the trained weights."""
    named = module.named_parameters()
    return {name: p.detach().clone() for name, p in named if p.requires_grad}


def reference_prompts(
    responses: Tensor,
    response_mask: Tensor,
    rewards: Tensor,
    prompts: Sequence[Any],
    feedbacks: Sequence[Any],
    tokenizer: Any,
    config: SDPOConfig,
    *,
    group_size: int,
    template_kwargs: Mapping[str, Any],
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The teacher's inputs as the reference builds them, and its stage values."""
    own = copy.deepcopy(tokenizer)
    settings = {name: getattr(config, name) for name in PROMPT_SETTINGS}
    set_tokenizer_sides(own, settings)
    batch = build_teacher_batch(
        responses,
        response_mask,
        rewards.unsqueeze(-1),
        [[dict(message) for message in prompt] for prompt in prompts],
        [row // group_size for row in range(len(prompts))],
        {"feedback": list(feedbacks)},
        own,
        loss_mode="sdpo",
        self_distillation=settings,
        apply_chat_template_kwargs=template_kwargs,
    )
    assert batch is not None
    return batch.tensors, batch.trace


def reference_update(
    replica: Replica,
    batch: Mapping[str, Tensor],
    config: SDPOConfig,
    *,
    mini_batch_size: int,
    micro_batch_size: int,
    epochs: int,
    rates: Sequence[list[float]] = (),
) -> Record:
    """One update by the reference; changes the replica.

    Args:
        replica: whose weights are updated.
        batch: rows of the whole update under the reference's names.
        config: settings; `temperature` included, `is_clip` as the user gave it.
        mini_batch_size: rows per optimizer step.
        micro_batch_size: rows per forward pass.
        epochs: passes over the batch.
        rates: learning rates of the optimizer's groups at each step; none keeps them.
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
    trace: dict[str, Tensor] = {}
    actor = RecordingActor(
        replica.student, replica.optimizer, settings, teacher, trace, rates=rates
    )
    start, blank = weights_of(replica.student), torch.zeros_like(batch["responses"]).float()
    rows = {"old_log_probs": blank, "advantages": blank, **batch}
    dtype = next(replica.student.parameters()).dtype
    rows = {n: t.to(dtype) if t.is_floating_point() else t for n, t in rows.items()}
    actor.update_policy(rows, config.temperature)
    record = Record(start=start, teacher=weights_like(replica.teacher, start))
    scale = 1 / (mini_batch_size // micro_batch_size)
    minis = len(actor.after)
    micros = len({name.split(".")[1] for name in trace if name.startswith("u0.mb")})
    for number, weights in enumerate(actor.after):
        span = range(number * micros // minis, (number + 1) * micros // minis)
        parts = [named(trace, f"u0.mb{micro}.") for micro in span]
        gradient = named(trace, f"u0.mini{number}.grad.", keep=True)
        loss = sum(part["aggregate"].item() for part in parts) * scale
        record.steps.append(Step(parts, loss, False, gradient, weights))
    return record


def weights_like(module: nn.Module, like: Mapping[str, Tensor]) -> Weights:
    """Copies of the weights of the given names."""
    own = dict(module.named_parameters())
    return {name: own[name].detach().clone() for name in like}


def named(trace: Mapping[str, Tensor], prefix: str, *, keep: bool = False) -> dict[str, Tensor]:
    """The values below a prefix, under the names of the stages, or under their own."""
    found = {n.removeprefix(prefix): t for n, t in trace.items() if n.startswith(prefix)}
    return found if keep else {OUR_NAMES[n]: t for n, t in found.items() if n in OUR_NAMES}
