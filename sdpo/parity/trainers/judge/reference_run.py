"""Runs the reference through a scenario: student's inputs, teacher's prompts, updates.

Micro-batches take the rows that the audited trainer put into them: which rows share a micro-batch
is the trainer's choice, what is computed from them is not. Several processes are one with all their
micro-batches: the reference averages gradients over processes, and each is a mean of its own.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sdpo.fixtures.models import build_optimizer
from sdpo.parity.cases.run_reference import (
    Groups,
    TraceHooks,
    in_dtype,
    run_reference_updates,
)
from sdpo.parity.cases.stage_trace import StageTrace
from sdpo.parity.cases.value_names import UPDATE_SETTINGS
from sdpo.parity.trainers.recording.scripted_world import scripted_batch
from sdpo.parity.trainers.scenarios.scenario import Generation, Scenario
from sdpo.parity.trainers.scenarios.training_record import Tensors
from sdpo.reference import teacher_prompt as prompts
from sdpo.reference.forward import forward_micro_batch
from sdpo.reference.update import UpdateSettings

_REQUIRED_BUT_UNUSED = "advantages"


def _teacher_batch(
    scenario: Scenario, generation: Generation, batch: Tensors, tokenizer: Any
) -> prompts.TeacherBatch:
    """Build the reference's teacher inputs of a generation; rewards lie on the last token."""
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


def reference_batch(
    scenario: Scenario, generation: Generation, tokenizer: Any
) -> tuple[Tensors, prompts.PromptTrace]:
    """Make everything the actor needs but old log-probs, and the trace of the teacher's prompt."""
    tokenizer = copy.deepcopy(tokenizer)
    batch = scripted_batch(scenario, generation, tokenizer)
    teacher = _teacher_batch(scenario, generation, batch, tokenizer)
    batch |= teacher.tensors
    batch[_REQUIRED_BUT_UNUSED] = torch.zeros(batch["responses"].shape)
    return batch, teacher.trace


class _MergedAdapters(TraceHooks):
    """Lets the teacher average the effective weights of a student with adapters."""

    def __init__(self, merged: Callable[[nn.Module], nn.Module]):
        super().__init__()
        self.merged = merged

    def averaged(self, teacher: nn.Module, actor: nn.Module) -> tuple[nn.Module, nn.Module]:
        """Return the teacher, and a plain copy of the student."""
        return teacher, self.merged(actor)


def run_reference(
    scenario: Scenario,
    model: nn.Module,
    tokenizer: Any,
    groups: Sequence[Groups],
    *,
    merged: Callable[[nn.Module], nn.Module] | None = None,
    dtype: torch.dtype = torch.float32,
) -> StageTrace:
    """Let the reference learn from a scenario by itself.

    Args:
        scenario: the script.
        model: the initial student; it is copied.
        tokenizer: of the model.
        groups: per update, optimizer step and micro-batch its rows.
        merged: for adapters, gives a plain copy of the student with effective weights; the teacher
            averages those.
        dtype: of weights and arithmetic; float64 for the truth.
    """
    student = copy.deepcopy(model).to(dtype)
    teacher = (copy.deepcopy(student) if merged is None else merged(student)).eval()
    trainable = [p for p in student.parameters() if p.requires_grad]
    anchor = copy.deepcopy(student) if scenario.policy_terms.get("use_kl_loss") else None
    hooks = TraceHooks() if merged is None else _MergedAdapters(merged)

    def batches() -> Iterator[tuple[Tensors, Groups]]:
        for number, generation in enumerate(scenario.generations):
            batch, _ = reference_batch(scenario, generation, tokenizer)
            with torch.no_grad():
                batch["old_log_probs"] = log_probs(student, batch, scenario, dtype)
                if anchor is not None:
                    batch["ref_log_prob"] = log_probs(anchor, batch, scenario, dtype)
            yield in_dtype(batch, dtype), _epochs_of(scenario, groups[number])

    run_reference_updates(
        student,
        teacher,
        build_optimizer(dict(scenario.optimizer), trainable),
        _update_settings(scenario, dtype),
        scenario.temperature,
        batches(),
        hooks=hooks,
    )
    return hooks.trace


def _epochs_of(scenario: Scenario, groups: Groups) -> Groups:
    """Check the number of an update's optimizer steps, and return their groups.

    Raises:
        ValueError: the trainer took another number of optimizer steps than the scenario has.
    """
    expected = scenario.steps_per_generation // scenario.accumulation * scenario.num_iterations
    if len(groups) != expected:
        raise ValueError(f"{len(groups)} optimizer steps in an update, expected {expected}")
    return groups


def _update_settings(scenario: Scenario, dtype: torch.dtype) -> UpdateSettings:
    """Translate a scenario's settings for the reference's actor; groups of rows are given."""
    of_loss = {name: scenario.self_distillation[name] for name in UPDATE_SETTINGS}
    return UpdateSettings(
        ppo_mini_batch_size=scenario.micro_batch_size * scenario.accumulation * scenario.processes,
        ppo_micro_batch_size_per_gpu=scenario.micro_batch_size,
        ppo_epochs=scenario.num_iterations,
        loss_agg_mode=scenario.loss_agg_mode,
        grad_clip=scenario.grad_clip,
        use_dynamic_bsz=True,
        compute_dtype="float32" if dtype == torch.float64 else scenario.dtype,
        **of_loss,
        **scenario.policy_terms,
    )


def log_probs(
    module: nn.Module, batch: Tensors, scenario: Scenario, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Compute log-probs of the response tokens under a module, `(B, T)`."""
    low = scenario.dtype if dtype == torch.float32 else "float32"
    compute = getattr(torch, low)
    return forward_micro_batch(module, batch, scenario.temperature, compute_dtype=compute)[
        "log_probs"
    ].to(dtype)
