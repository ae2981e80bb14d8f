"""One recorded training of a trainer, followed from stage to stage and from step to step."""

import copy
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdpo.lockstep.replica import weights_of
from sdpo.parity.cases.stage_trace import StageTrace
from sdpo.parity.compare.comparison import Comparison, compare_exact
from sdpo.parity.compare.evaluated_case import Observation
from sdpo.parity.compare.first_in_time import BEFORE
from sdpo.parity.compare.statuses import Status
from sdpo.parity.recorded.measured_budgets import compare_all_measured
from sdpo.parity.trainers.judge import weight_stages as chain
from sdpo.parity.trainers.judge.effects import optimised
from sdpo.parity.trainers.judge.known_faults import (
    explained_forward,
    explained_optimizer,
    explained_prompts,
    explained_scale,
    explained_teacher,
)
from sdpo.parity.trainers.judge.loss_stages import compare_micro_batch, loss_case
from sdpo.parity.trainers.judge.own_batch import asked_batch, compare_answers, teacher_tokens_apart
from sdpo.parity.trainers.judge.prompt_stages import compare_prompts
from sdpo.parity.trainers.judge.reference_run import log_probs, run_reference
from sdpo.parity.trainers.processes.ranks import compare_ranks
from sdpo.parity.trainers.scenarios.scenario import Generation, Scenario
from sdpo.parity.trainers.scenarios.tiny_model import tiny_model, tiny_tokenizer
from sdpo.parity.trainers.scenarios.training_record import (
    MicroBatch,
    OptimizerStep,
    Tensors,
    TrainerRun,
    Update,
)


class Walk:
    """One run of a trainer, followed from stage to stage and from step to step."""

    def __init__(self, scenario: Scenario, run: TrainerRun, folder: Path):
        self.scenario, self.run = scenario, run
        self.model = tiny_model(scenario, folder)
        self.tokenizer = tiny_tokenizer()
        self.tokenizer.padding_side = "left"
        self.student = chain.Twins.of(self.model)
        self.plain = chain.Twins.of(chain.merged(self.model) if scenario.lora else self.model)
        self.optimizers = chain.Optimizers(scenario, weights_of(self.model))
        self.observations: list[Observation] = []
        self.tried: dict[str, list[list[str]]] = defaultdict(list)
        self.optimised: list[float | None] = []
        self.moved: tuple[Tensors, list[Tensors]] = ({}, [])
        self.at = BEFORE
        self.asked_otherwise = ""

    def comparisons(self) -> Iterator[Comparison]:
        """All comparisons with their places, update by update."""
        return (replace(found, place=self.at) for found in self.followed())

    def followed(self) -> Iterator[Comparison]:
        """All comparisons in the order of the training; `at` is the place of the present one."""
        yield from self.settings()
        weights, teacher = dict(self.run.initial), dict(self.run.initial_teacher)
        yield from chain.compare_start(self.scenario, teacher, self.plain_weights(weights))
        for number, update in enumerate(self.run.updates):
            self.at = (number, 0, 0)
            generation = self.scenario.generations[number]
            batch, prompt = asked_batch(self.scenario, generation, update.prompt, self.tokenizer)
            found = self.prompts(generation, update, prompt, batch)
            yield from found
            self.asked_otherwise = teacher_tokens_apart(found)
            self.student.load(weights)
            old = self.old_log_probs(batch)
            path, stepped = [weights], False
            for place, step in enumerate(update.steps):
                self.at = (number, place, 0)
                self.student.load(weights)
                self.plain.load(teacher)
                self.moved = (teacher, [self.plain_weights(w) for w in path])
                yield from self.step(update, step, prompt, batch, old)
                found, norm = self.optimizer(weights, step)
                stepped |= math.isfinite(norm)
                yield from found
                weights = dict(step.parameters)
                path.append(weights)
            yield from compare_ranks(self.scenario.id, self.run, number)
            if update.teacher:
                yield from self.teacher(teacher, path, update, stepped)
                teacher = dict(update.teacher)

    def settings(self) -> Iterator[Comparison]:
        """Effective settings of the trainer against the scenario's."""
        wanted = {**self.scenario.self_distillation, "temperature": self.scenario.temperature}
        for name, value in self.run.settings.items():
            if name in wanted:
                yield compare_exact("config", self.scenario.id, name, value, wanted[name])

    def prompts(
        self, generation: Generation, update: Update, prompt: dict[str, Any], batch: Tensors
    ) -> list[Comparison]:
        """Prompt stages, and the known faults behind those that diverge."""
        found = compare_prompts(
            self.scenario, generation, update.prompt, prompt, batch, self.tokenizer
        )
        for comparison in found:
            if comparison.status == Status.DIVERGENT:
                faults = explained_prompts(
                    self.scenario, generation, update.prompt, comparison.stage, self.tokenizer
                )
                self.tried[comparison.stage].append(faults)
        return found

    def step(
        self,
        update: Update,
        step: OptimizerStep,
        prompt: dict[str, Any],
        batch: Tensors,
        old: chain.Spread | None,
    ) -> Iterator[Comparison]:
        """Micro-batches of an optimizer step, and their sum."""
        scales = []
        for place, micro_batch in enumerate(step.micro_batches):
            self.at = (*self.at[:2], place)
            mask = self.signal(update, micro_batch, prompt)
            found, scale = self.micro_batch(micro_batch, batch, mask, old)
            scales.append(scale)
            yield from found
        self.optimised.append(optimised(self.scenario, step, scales))
        if self.scenario.dropout:
            return  # the student's passes draw at random, and cannot be repeated
        found = chain.compare_gradient(self.scenario, self.student, step, scales)
        if any(comparison.status == Status.DIVERGENT for comparison in found):
            self.tried["accumulate"].append(explained_scale(scales, self.scenario.accumulation))
        yield from found

    def signal(self, update: Update, micro_batch: MicroBatch, prompt: dict[str, Any]) -> Tensor:
        """`(B,)` distillation mask of a micro-batch, the trainer's where it shows one."""
        mask = update.prompt.get("distillation_mask") or prompt["distillation_mask"].tolist()
        return torch.tensor([float(mask[row]) for row in micro_batch.rows])

    def old_log_probs(self, batch: Tensors) -> chain.Spread | None:
        """The reference's old log-probs at the weights that generated; None on-policy."""
        if self.scenario.on_policy:
            return None
        with torch.no_grad():
            return chain.Spread(
                log_probs(self.student.single, batch, self.scenario),
                log_probs(self.student.double, batch, self.scenario, torch.float64),
            )

    def micro_batch(
        self, micro_batch: MicroBatch, batch: Tensors, mask: Tensor, old: chain.Spread | None
    ) -> tuple[list[Comparison], float]:
        """Inputs, forward passes and loss of a micro-batch, and the scale of its gradient.

        The ratio is taken to the trainer's own old log-probs, which are judged by themselves: below
        float32 two correct forward passes differ by more than the loss's budget.
        """
        width = micro_batch.inputs["responses"].size(1)
        old = None if old is None else old.of(micro_batch.rows, width)
        shown = micro_batch.inputs.get("old_log_probs")
        if old is not None and shown is None and self.scenario.dtype != "float32":
            raise ValueError(
                f"inputs of a micro-batch lack old_log_probs, without which a ratio in "
                f"{self.scenario.dtype} cannot be judged"
            )
        chosen = None if old is None else old.value if shown is None else shown
        case = loss_case(self.scenario, self.scenario.id, micro_batch, chosen, mask)
        found = chain.compare_student_tokens(self.scenario, micro_batch, batch)
        if (case.loss_mask != 0).any():
            found += self.forward(micro_batch, case.loss_mask, batch)
            if old is not None and shown is not None:
                found.append(chain.compare_old(self.scenario, old, shown, case.loss_mask))
        compared, observation, scale = compare_micro_batch(self.scenario, case, micro_batch)
        self.observations.append(observation)
        return found + compared, scale

    def forward(self, micro_batch: MicroBatch, mask: Tensor, batch: Tensors) -> list[Comparison]:
        """Both sides' forward passes, and the known faults behind a wrong teacher's."""
        found, given = [], (micro_batch, mask, batch)
        if not self.scenario.dropout:
            found = compare_answers(self.scenario, "student", self.student, *given)
        if self.scenario.self_distillation["teacher_regularization"] == "trust-region":
            return found  # mixed from two models, which one model cannot repeat
        inherits = self.asked_otherwise
        answers = compare_answers(self.scenario, "teacher", self.plain, *given, inherits)
        if self.at[1:] != (0, 0):  # its weights are recorded between updates only
            answers = [replace(answer, may_follow=("teacher_update",)) for answer in answers]
        if answers[0].status == Status.DIVERGENT:
            faults = explained_forward(self.scenario, self.plain, self.moved, micro_batch, mask)
            self.tried["log_probs"].append(faults)
        return found + answers

    def optimizer(self, before: Tensors, step: OptimizerStep) -> tuple[list[Comparison], float]:
        """Weights after a step, the known faults behind wrong ones, and the gradient's norm."""
        after, truth, norm = self.optimizers.step(before, step.gradient)
        found = compare_all_measured("optimizer", self.scenario.id, after, truth, step.parameters)
        if any(comparison.status == Status.DIVERGENT for comparison in found):
            faults = explained_optimizer(self.optimizers, before, step.gradient, step.parameters)
            self.tried["optimizer"].append(faults)
        return found, norm

    def teacher(
        self, before: Tensors, path: list[Tensors], update: Update, stepped: bool
    ) -> list[Comparison]:
        """The teacher after an update, and the known faults behind a wrong one."""
        path = [self.plain_weights(weights) for weights in path]
        found = chain.compare_teacher(self.scenario, before, path[-1], update.teacher, stepped)
        if any(comparison.status == Status.DIVERGENT for comparison in found):
            faults = explained_teacher(self.scenario, before, path, update.teacher)
            self.tried["teacher_update"].append(faults)
        return found

    def plain_weights(self, weights: Tensors) -> Tensors:
        """A plain model's weights: of an adapter the effective ones."""
        if not self.scenario.lora:
            return weights
        adapted = copy.deepcopy(self.model)
        adapted.load_state_dict(weights, strict=False)
        return chain.named(chain.merged(adapted))

    def natural(self) -> StageTrace:
        """The reference through the whole scenario, with the trainer's division into groups."""
        groups = [
            [[micro_batch.rows for micro_batch in step.micro_batches] for step in update.steps]
            for update in self.run.updates
        ]
        gather = chain.merged if self.scenario.lora else None
        return run_reference(self.scenario, self.model, self.tokenizer, groups, merged=gather)
