"""Move the one value of a trainer that a scenario nudges."""

import torch
from torch import Tensor

from sdpo.parity.cases.checked_call import NotCoveredError
from sdpo.parity.trainers.recording.adapter_base import HFTrainer, LossInputs, TrainerHooks
from sdpo.parity.trainers.recording.fingerprints import fingerprint
from sdpo.parity.trainers.scenarios.scenario import Scenario
from sdpo.parity.trainers.scenarios.tiny_model import nudge

OLD_LOG_PROBS = ("old_per_token_logps", "old_log_probs")
"""Names under which trainers pass the log-probs at the weights that generated."""
DISTILLATION_MASK = ("self_distillation_mask",)
LOG_PROBS_LOWERED_BY = 0.25
"""Ratios grow by 1.28, less than the usual cap."""
ROLLOUT_WEIGHT = 0.5
"""Of every token, where the weights of rollouts are moved alone."""


class Nudge:
    """The value that a scenario moves, if it moves one.

    Attributes:
        fingerprint: of the moved values, under the name `nudge`; empty as long as none has moved.
    """

    def __init__(self, adapter: TrainerHooks, trainer: HFTrainer, scenario: Scenario):
        self.adapter, self.trainer, self.name = adapter, trainer, scenario.nudge
        self.fingerprint: dict[str, str] = {}

    def weights(self) -> None:
        """Move a weight of student or teacher, if that is what the scenario moves.

        Raises:
            NotCoveredError: they are one module.
        """
        student, teacher = self.trainer.model, self.adapter.teacher(self.trainer)
        module = {"student": student, "teacher": teacher}.get(self.name)
        if module is None:
            return
        if student is teacher:
            raise NotCoveredError("student and teacher are one module")
        before = fingerprint(module.state_dict())
        nudge(module)
        self.note(before, fingerprint(module.state_dict()))

    def inputs(self, inputs: LossInputs) -> None:
        """Move an input of `compute_loss`, if that is what the scenario moves.

        Raises:
            NotCoveredError: the trainer does not pass it, or has no such input.
        """
        if self.name == "old_log_probs":
            for name in self._passed(inputs, OLD_LOG_PROBS):
                self._replace(inputs, name, inputs[name] - LOG_PROBS_LOWERED_BY)
        elif self.name == "distillation_mask":
            for name in self._passed(inputs, DISTILLATION_MASK):
                mask = inputs[name].clone()
                mask[0] = 0
                self._replace(inputs, name, mask)
        elif self.name == "rollout_is_weights":
            usual = torch.ones(inputs["completion_mask"].shape)
            self._add(inputs, usual, usual * ROLLOUT_WEIGHT)
        elif self.name == "response_mask":
            usual = torch.ones_like(inputs["completion_mask"])
            self._add(inputs, usual, usual.index_fill(1, torch.tensor([1]), 0))

    def note(self, before: str, after: str) -> None:
        """Note by its fingerprints that a value has moved, if it has."""
        if before != after:
            self.fingerprint["nudge"] = self.fingerprint.get("nudge", "") + after

    def _passed(self, inputs: LossInputs, names: tuple[str, ...]) -> list[str]:
        """Return which of some inputs the trainer passes."""
        passed = [name for name in names if inputs.get(name) is not None]
        if not passed:
            raise NotCoveredError(f"compute_loss is not given {' or '.join(names)}")
        return passed

    def _replace(self, inputs: LossInputs, name: str, value: Tensor) -> None:
        """Pass another value of an input."""
        before = fingerprint(inputs[name])
        inputs[name] = value
        self.note(before, fingerprint(value))

    def _add(self, inputs: LossInputs, usual: Tensor, value: Tensor) -> None:
        """Pass an input that only other samplers and tools have, under the trainer's name of it."""
        name = self.adapter.further_inputs.get(self.name)
        if name is None:
            raise NotCoveredError(f"the trainer has no input for {self.name}")
        inputs[name] = value
        mask = inputs["completion_mask"]
        self.note(fingerprint(usual * mask), fingerprint(value * mask))
