"""The reference through a scenario: student's inputs, teacher's prompts, updates.

Micro-batches take the rows that the audited trainer put into them: which rows share a micro-batch
is the trainer's choice, what is computed from them is not. Several processes are one with all their
micro-batches: the reference averages gradients over processes, and each is a mean of its own.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sdpo.fixtures.models import build_optimizer
from sdpo.parity.cases.value_names import UPDATE_SETTINGS
from sdpo.parity.trainers.scenarios.scenario import EXTRA_PADDING, Generation, Scenario
from sdpo.parity.trainers.scenarios.tiny_model import completion_ids
from sdpo.parity.trainers.scenarios.training_record import Tensors
from sdpo.reference import teacher_prompt as prompts
from sdpo.reference.update import (
    Actor,
    TrustRegionTeacher,
    UpdateSettings,
    ema_update,
    forward_micro_batch,
)

REQUIRED_BUT_UNUSED = "advantages"


Groups = Sequence[Sequence[Sequence[int]]]


@dataclass
class ReferenceUpdate:
    """The reference's values of one update, under the names of `record.Update`.

    `losses` has one entry per optimizer step: the mean over its micro-batches.
    """

    batch: Tensors
    prompt: dict[str, Any]
    gradients: list[Tensors] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    parameters: Tensors = field(default_factory=dict)
    teacher: Tensors = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)


def student_batch(scenario: Scenario, generation: Generation, tokenizer: Any) -> Tensors:
    """Prompts and responses side by side, left- and right-padded, as the reference lays them out.

    Shape: ids, attention mask and position ids `(B, P+T)`; responses and response mask `(B, T)`;
    all int64.
    """
    rows = range(len(generation.rollouts))
    prompt_ids, prompt_mask = prompts.encode_prompts(
        [list(generation.conversation_of(row)) for row in rows],
        tokenizer,
        {"max_reprompt_len": tokenizer.model_max_length},
        None,
    )
    completions = completion_ids(generation)
    further = EXTRA_PADDING if scenario.disguise == "extra padding" else 0
    width = max(len(ids) for ids in completions) + further
    responses = torch.full((len(completions), width), int(tokenizer.pad_token_id))
    response_mask = torch.zeros_like(responses)
    for row, ids in enumerate(completions):
        responses[row, : len(ids)] = torch.tensor(ids)
        response_mask[row, : len(ids)] = 1
    attention_mask = torch.cat([prompt_mask, response_mask], dim=1)
    return {
        "responses": responses,
        "response_mask": response_mask,
        "input_ids": torch.cat([prompt_ids, responses], dim=1),
        "attention_mask": attention_mask,
        "position_ids": torch.clamp(torch.cumsum(attention_mask, dim=1) - 1, min=0),
    }


def teacher_batch(
    scenario: Scenario, generation: Generation, batch: Tensors, tokenizer: Any
) -> prompts.TeacherBatch:
    """The reference's teacher inputs for a generation; rewards lie on the last response token."""
    prompts.set_tokenizer_sides(tokenizer, scenario.self_distillation)
    rewards = torch.zeros(batch["responses"].shape)
    last = batch["response_mask"].sum(dim=1) - 1
    for row, rollout in enumerate(generation.rollouts):
        rewards[row, last[row]] = rollout.reward
    rows = range(len(generation.rollouts))
    built = prompts.build_teacher_batch(
        batch["responses"],
        batch["response_mask"],
        rewards,
        [list(generation.conversation_of(row)) for row in rows],
        [row // generation.group_size for row in rows],
        {"feedback": [rollout.feedback for rollout in generation.rollouts]},
        tokenizer,
        loss_mode="sdpo",
        self_distillation=scenario.self_distillation,
    )
    assert built is not None
    return built


def whole_batch(
    scenario: Scenario, generation: Generation, tokenizer: Any
) -> tuple[Tensors, dict[str, Any]]:
    """Everything the actor needs but old log-probs, and the trace of the teacher's prompt."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.padding_side = "left"
    batch = student_batch(scenario, generation, tokenizer)
    teacher = teacher_batch(scenario, generation, batch, tokenizer)
    batch |= teacher.tensors
    batch[REQUIRED_BUT_UNUSED] = torch.zeros(batch["responses"].shape)
    return batch, teacher.trace


def run_reference(
    scenario: Scenario,
    model: nn.Module,
    tokenizer: Any,
    groups: Sequence[Groups],
    *,
    merged: Callable[[nn.Module], nn.Module] | None = None,
    dtype: torch.dtype = torch.float32,
) -> list[ReferenceUpdate]:
    """All updates of a scenario.

    Args:
        scenario: the script.
        model: the initial student; it is copied.
        tokenizer: of the model.
        groups: per update, optimizer step and micro-batch its rows.
        merged: for adapters, gives a plain copy of the student with effective weights; the teacher
            averages those.
        dtype: of weights and arithmetic; float64 for the truth.
    """
    actor = copy.deepcopy(model).to(dtype)
    teacher = (copy.deepcopy(actor) if merged is None else merged(actor)).eval()
    trainable = [p for p in actor.parameters() if p.requires_grad]
    optimizer = build_optimizer(dict(scenario.optimizer), trainable)
    settings = update_settings(scenario, adapters=merged is not None, dtype=dtype)
    trace: Tensors = {}
    module: nn.Module = teacher
    if settings.teacher_regularization == "trust-region":
        mix = scenario.self_distillation["teacher_update_rate"]
        module = TrustRegionTeacher(teacher, actor, mix)
    updater = Actor(actor, optimizer, settings, module, trace)
    found = []
    for number, generation in enumerate(scenario.generations):
        batch, prompt = whole_batch(scenario, generation, tokenizer)
        with torch.no_grad():
            batch["old_log_probs"] = log_probs(actor, batch, scenario, dtype)
        batch = {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()}
        steps = epochs_of(scenario, groups[number])
        metrics = updater.update_policy(batch, scenario.temperature, steps)
        if merged is not None:
            ema_update(teacher, merged(actor), scenario.self_distillation["teacher_update_rate"])
        update = collected(number, batch, prompt, trace, metrics, teacher)
        update.losses = step_losses(stripped(trace, f"u{number}."), groups[number])
        found.append(update)
    return found


def epochs_of(scenario: Scenario, groups: Groups) -> Groups:
    """The groups of all optimizer steps of an update, checked for their number.

    Raises:
        ValueError: the trainer took another number of optimizer steps than the scenario has.
    """
    expected = scenario.steps_per_generation // scenario.accumulation * scenario.num_iterations
    if len(groups) != expected:
        raise ValueError(f"{len(groups)} optimizer steps in an update, expected {expected}")
    return groups


def update_settings(scenario: Scenario, *, adapters: bool, dtype: torch.dtype) -> UpdateSettings:
    """A scenario's settings for the reference's actor; micro-batches come as groups of rows."""
    chosen = {name: scenario.self_distillation[name] for name in UPDATE_SETTINGS}
    if adapters:
        chosen["teacher_update_rate"] = 0.0
    return UpdateSettings(
        ppo_mini_batch_size=scenario.micro_batch_size * scenario.accumulation * scenario.processes,
        ppo_micro_batch_size_per_gpu=scenario.micro_batch_size,
        ppo_epochs=scenario.num_iterations,
        loss_agg_mode=scenario.loss_agg_mode,
        grad_clip=scenario.grad_clip,
        use_dynamic_bsz=True,
        compute_dtype="float32" if dtype == torch.float64 else scenario.dtype,
        **chosen,
    )


def log_probs(
    module: nn.Module, batch: Tensors, scenario: Scenario, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Log-probs of the response tokens under a module, `(B, T)`."""
    low = scenario.dtype if dtype == torch.float32 else "float32"
    compute = getattr(torch, low)
    return forward_micro_batch(module, batch, scenario.temperature, compute_dtype=compute)[
        "log_probs"
    ].to(dtype)


def collected(
    number: int,
    batch: Tensors,
    prompt: dict[str, Any],
    trace: Tensors,
    metrics: dict[str, Any],
    teacher: nn.Module,
) -> ReferenceUpdate:
    """One update's values out of the actor's trace."""
    start, update = f"u{number}.", ReferenceUpdate(batch, prompt)
    update.grad_norms = list(metrics["actor/grad_norm"])
    for mini in range(len(update.grad_norms)):
        prefix = f"{start}mini{mini}.grad."
        update.gradients.append(stripped(trace, prefix))
    update.parameters = stripped(trace, f"{start}actor.")
    update.teacher = {name: p.detach().clone() for name, p in teacher.named_parameters()}
    return update


def step_losses(trace: Tensors, groups: Groups) -> list[float]:
    """Mean loss of the micro-batches of each optimizer step."""
    losses, place = [], 0
    for step in groups:
        values = [trace[f"mb{place + n}.loss"].item() for n in range(len(step))]
        losses.append(sum(values) / len(values))
        place += len(step)
    return losses


def stripped(tensors: Tensors, prefix: str) -> Tensors:
    """The tensors below a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
