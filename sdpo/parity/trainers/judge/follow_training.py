"""A recorded training compared with the reference, from stage to stage and from step to step."""

import copy
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from sdpo.lockstep.replica import weights_of
from sdpo.parity.cases.stage_trace import StageTrace
from sdpo.parity.compare.comparison import Comparison, compare_exact
from sdpo.parity.compare.evaluated_case import Observation
from sdpo.parity.compare.first_in_time import BEFORE
from sdpo.parity.compare.statuses import Status
from sdpo.parity.recorded.measured_budgets import compare_all_measured
from sdpo.parity.trainers.judge.effects import optimised
from sdpo.parity.trainers.judge.forward_stages import (
    OldLogProbs,
    TwoPrecisions,
    compare_old_log_probs,
    compare_side,
    compare_student_tokens,
)
from sdpo.parity.trainers.judge.known_faults import (
    WeightHistory,
    explained_forward,
    explained_optimizer,
    explained_prompts,
    explained_scale,
    explained_teacher,
)
from sdpo.parity.trainers.judge.loss_stages import (
    ReferenceTerms,
    compare_micro_batch,
    loss_case,
    reference_terms,
)
from sdpo.parity.trainers.judge.prompt_stages import compare_prompts, reference_inputs
from sdpo.parity.trainers.judge.reference_run import log_probs, run_reference
from sdpo.parity.trainers.judge.weight_stages import (
    ReferenceOptimizer,
    compare_gradient,
    compare_start,
    compare_teacher,
    merged,
)
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
from sdpo.reference.teacher_prompt import PromptTrace


class FollowedTraining:
    """One run of a trainer, compared as it went: update by update, step by step, stage by stage.

    Attributes:
        observations: what the micro-batches gave, to explain what diverges in the loss.
        faults_tried: by stage, for each diverging value the known faults that give it.
        optimised: for each optimizer step the loss that its gradient followed.
    """

    def __init__(self, scenario: Scenario, run: TrainerRun, folder: Path):
        self.scenario, self.run = scenario, run
        self.model = tiny_model(scenario, folder)
        self.tokenizer = tiny_tokenizer()
        self.tokenizer.padding_side = "left"
        self.student = TwoPrecisions.of(self.model)
        self.teacher = TwoPrecisions.of(merged(self.model) if scenario.lora else self.model)
        self.optimizer = ReferenceOptimizer(scenario, weights_of(self.model))
        self.observations: list[Observation] = []
        self.faults_tried: dict[str, list[list[str]]] = defaultdict(list)
        self.optimised: list[float | None] = []
        self._terms: list[float] = []
        self._weights = WeightHistory({}, [])
        self._at = BEFORE
        self._teacher_tokens_inherit = ""

    def comparisons(self) -> Iterator[Comparison]:
        """Yield all comparisons with their places, update by update."""
        return (replace(comparison, place=self._at) for comparison in self._in_order())

    def _in_order(self) -> Iterator[Comparison]:
        """Yield all comparisons; `_at` is the place of the present one."""
        yield from self._compare_settings()
        weights, teacher = dict(self.run.initial), dict(self.run.initial_teacher)
        yield from compare_start(self.scenario, teacher, self._merged_weights(weights))
        for number, update in enumerate(self.run.updates):
            self._at = (number, 0, 0)
            generation = self.scenario.generations[number]
            batch, prompt = reference_inputs(
                self.scenario, generation, update.prompt, self.tokenizer
            )
            comparisons = self.compare_prompts(generation, update, prompt, batch)
            yield from comparisons
            self._teacher_tokens_inherit = _teacher_tokens_if_divergent(comparisons)
            self.student.load(weights)
            old = self._old_log_probs(batch)
            self._weights = WeightHistory(teacher, [self._merged_weights(weights)])
            stepped = False
            for place, step in enumerate(update.steps):
                self._at = (number, place, 0)
                self.student.load(weights)
                self.teacher.load(teacher)
                yield from self._compare_step(update, step, prompt, batch, old)
                comparisons, norm = self._compare_optimizer(weights, step)
                stepped |= math.isfinite(norm)
                yield from comparisons
                weights = dict(step.parameters)
                self._weights.students.append(self._merged_weights(weights))
            yield from compare_ranks(self.scenario.id, self.run, number)
            if update.teacher:
                yield from self._compare_teacher(update, stepped)
                teacher = dict(update.teacher)

    def _compare_settings(self) -> Iterator[Comparison]:
        """Compare the effective settings of the trainer with the scenario's."""
        wanted = {**self.scenario.self_distillation, "temperature": self.scenario.temperature}
        for name, value in self.run.settings.items():
            if name in wanted:
                yield compare_exact("config", self.scenario.id, name, value, wanted[name])

    def compare_prompts(
        self, generation: Generation, update: Update, prompt: PromptTrace, batch: Tensors
    ) -> list[Comparison]:
        """Compare the prompt stages, and try the known faults on those that diverge."""
        comparisons = compare_prompts(
            self.scenario, generation, update.prompt, prompt, batch, self.tokenizer
        )
        for comparison in comparisons:
            if comparison.status == Status.DIVERGENT:
                faults = explained_prompts(
                    self.scenario, generation, update.prompt, comparison.stage, self.tokenizer
                )
                self.faults_tried[comparison.stage].append(faults)
        return comparisons

    def _compare_step(
        self,
        update: Update,
        step: OptimizerStep,
        prompt: PromptTrace,
        batch: Tensors,
        old: OldLogProbs | None,
    ) -> Iterator[Comparison]:
        """Compare the micro-batches of an optimizer step, and their sum.

        Args:
            update: the one that the step belongs to.
            step: what the trainer did.
            prompt: the reference's prompt stages.
            batch: the reference's inputs of all rows.
            old: the reference's old log-probs; None on-policy.
        """
        scales, self._terms = [], []
        for place, micro_batch in enumerate(step.micro_batches):
            self._at = (*self._at[:2], place)
            mask = _distillation_mask(update, micro_batch, prompt)
            comparisons, scale = self._compare_micro_batch(micro_batch, batch, mask, old)
            scales.append(scale)
            yield from comparisons
        self.optimised.append(optimised(self.scenario, step, scales, self._terms))
        if self.scenario.dropout:
            return  # the student's passes draw at random, and cannot be repeated
        comparisons = compare_gradient(self.scenario, self.student, step, scales)
        if _any_divergent(comparisons):
            faults = explained_scale(scales, self.scenario.accumulation)
            self.faults_tried["accumulate"].append(faults)
        yield from comparisons

    def _old_log_probs(self, batch: Tensors) -> OldLogProbs | None:
        """Compute the reference's log-probs at the weights that generated; None on-policy."""
        if self.scenario.on_policy:
            return None
        return self._log_probs_of(self.student, batch)

    def _policy_terms(self, micro_batch: MicroBatch, batch: Tensors) -> ReferenceTerms | None:
        """Compute what is added to the loss of a micro-batch; None if nothing is."""
        if not self.scenario.policy_terms:
            return None
        anchor = None
        if self.scenario.policy_terms.get("use_kl_loss"):
            rows, width = micro_batch.rows, micro_batch.inputs["responses"].size(1)
            anchor = self._log_probs_of(TwoPrecisions.of(self.model), batch).of(rows, width)
        return reference_terms(self.scenario, micro_batch, anchor)

    def _log_probs_of(self, student: TwoPrecisions, batch: Tensors) -> OldLogProbs:
        """Compute the reference's log-probs of all rows in both precisions."""
        with torch.no_grad():
            return OldLogProbs(
                log_probs(student.single, batch, self.scenario),
                log_probs(student.double, batch, self.scenario, torch.float64),
            )

    def _compare_micro_batch(
        self, micro_batch: MicroBatch, batch: Tensors, mask: Tensor, old: OldLogProbs | None
    ) -> tuple[list[Comparison], float]:
        """Compare inputs, forward passes and loss of a micro-batch; also give its gradient's scale.

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
        denominator = None if old is None else old.value if shown is None else shown
        case = loss_case(self.scenario, self.scenario.id, micro_batch, denominator, mask)
        comparisons = compare_student_tokens(self.scenario, micro_batch, batch)
        if (case.loss_mask != 0).any():
            comparisons += self._compare_forward(micro_batch, case.loss_mask, batch)
            if old is not None and shown is not None:
                comparisons.append(compare_old_log_probs(self.scenario, old, shown, case.loss_mask))
        terms = self._policy_terms(micro_batch, batch)
        self._terms.append(0.0 if terms is None else terms.value)
        of_loss, observation, scale = compare_micro_batch(self.scenario, case, micro_batch, terms)
        self.observations.append(observation)
        return comparisons + of_loss, scale

    def _compare_forward(
        self, micro_batch: MicroBatch, mask: Tensor, batch: Tensors
    ) -> list[Comparison]:
        """Compare both sides' forward passes, and try the known faults on a wrong teacher's."""
        comparisons, arguments = [], (micro_batch, mask, batch)
        if not self.scenario.dropout:
            comparisons = compare_side(self.scenario, "student", self.student, *arguments)
        if self.scenario.self_distillation["teacher_regularization"] == "trust-region":
            return comparisons  # mixed from two models, which one model cannot repeat
        of_teacher = compare_side(
            self.scenario, "teacher", self.teacher, *arguments, self._teacher_tokens_inherit
        )
        if self._at[1:] != (0, 0):  # its weights are recorded between updates only
            of_teacher = [replace(c, may_follow=("teacher_update",)) for c in of_teacher]
        if of_teacher[0].status == Status.DIVERGENT:
            faults = explained_forward(
                self.scenario, self.teacher, self._weights, micro_batch, mask
            )
            self.faults_tried["log_probs"].append(faults)
        return comparisons + of_teacher

    def _compare_optimizer(
        self, before: Tensors, step: OptimizerStep
    ) -> tuple[list[Comparison], float]:
        """Compare the weights after a step, and try the known faults on wrong ones.

        Returns:
            The comparisons, and the gradient's norm.
        """
        after, truth, norm = self.optimizer.step(before, step.gradient)
        comparisons = compare_all_measured(
            "optimizer", self.scenario.id, after, truth, step.parameters
        )
        if _any_divergent(comparisons):
            faults = explained_optimizer(self.optimizer, before, step.gradient, step.parameters)
            self.faults_tried["optimizer"].append(faults)
        return comparisons, norm

    def _compare_teacher(self, update: Update, stepped: bool) -> list[Comparison]:
        """Compare the teacher after an update, and try the known faults on a wrong one."""
        before, last = self._weights.teacher, self._weights.students[-1]
        comparisons = compare_teacher(self.scenario, before, last, update.teacher, stepped)
        if _any_divergent(comparisons):
            faults = explained_teacher(self.scenario, self._weights, update.teacher)
            self.faults_tried["teacher_update"].append(faults)
        return comparisons

    def _merged_weights(self, weights: Tensors) -> Tensors:
        """Give the effective weights: of a plain model those that it has."""
        if not self.scenario.lora:
            return weights
        adapted = copy.deepcopy(self.model)
        adapted.load_state_dict(weights, strict=False)
        return {name: p.detach().clone() for name, p in merged(adapted).named_parameters()}

    def natural(self) -> StageTrace:
        """Run the reference by itself, with the trainer's division of rows into micro-batches."""
        groups = [
            [[micro_batch.rows for micro_batch in step.micro_batches] for step in update.steps]
            for update in self.run.updates
        ]
        merge = merged if self.scenario.lora else None
        return run_reference(self.scenario, self.model, self.tokenizer, groups, merged=merge)


def _distillation_mask(update: Update, micro_batch: MicroBatch, prompt: PromptTrace) -> Tensor:
    """Take the mask of a micro-batch, `(B,)`: the trainer's where it shows one."""
    mask = update.prompt.get("distillation_mask") or prompt["distillation_mask"].tolist()
    return torch.tensor([float(mask[row]) for row in micro_batch.rows])


def _teacher_tokens_if_divergent(comparisons: Iterable[Comparison]) -> str:
    """Name the stage `teacher_tokens` if it diverges, else nothing."""
    divergent = {c.stage for c in comparisons if c.status == Status.DIVERGENT}
    return "teacher_tokens" if "teacher_tokens" in divergent else ""


def _any_divergent(comparisons: Iterable[Comparison]) -> bool:
    """Tell whether any of some comparisons diverges."""
    return any(comparison.status == Status.DIVERGENT for comparison in comparisons)
