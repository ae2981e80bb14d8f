"""Faults planted in a trainer: the lockstep audit names each with its stage."""

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch

import sdpo.trainer.micro_batch_loss
from sdpo.lockstep import parity_callback
from sdpo.lockstep.parity_callback import ParityWarning
from sdpo.loss import self_distillation as loss_stages
from sdpo.parity.cases.stages import NAMES
from sdpo.prompt import teacher_batch
from sdpo.trainer.sdpo_trainer import SDPOTrainer
from sdpo.update import policy_terms
from tests.helpers.spread import slow_are
from tests.helpers.trainers import tiny_trainer
from tests.helpers.trainers.faulty_trainers import (
    AveragedPerMicroBatch,
    DroppingTeacher,
    NotDivided,
    Unscaled,
    WrongRate,
    WrongStep,
)
from tests.helpers.trainers.tiny_variants import OneSuccess, audited, lora, rows_of

pytestmark = pytest.mark.usefixtures("packages_are_looked_up_once")

EFFECTIVE = {"teacher_mode": "lora_ema", "lora_average": "effective"}


@pytest.fixture
def undrawn(monkeypatch):
    """A picture of each of many trainings takes as long as some of them."""
    monkeypatch.setattr(parity_callback, "plot_drift", lambda *_: None)


def one_sided_temperature(monkeypatch):
    real = sdpo.trainer.micro_batch_loss.self_distillation_stages

    def wrong(student, teacher, *tensors, config, **others):
        return real(student, teacher * config.temperature, *tensors, config=config, **others)

    monkeypatch.setattr(sdpo.trainer.micro_batch_loss, "self_distillation_stages", wrong)


def no_system_message(monkeypatch):
    real = teacher_batch.teacher_prompt

    def wrong(prompts, *others, **settings):
        return real([prompt[-1:] for prompt in prompts], *others, **settings)

    monkeypatch.setattr(teacher_batch, "teacher_prompt", wrong)


def own_support(monkeypatch):
    real = loss_stages.support

    def wrong(student, teacher, **settings):
        chosen = real(teacher, student, **settings)
        return chosen._replace(student=chosen.teacher, teacher=chosen.student)

    monkeypatch.setattr(loss_stages, "support", wrong)


def masked_rows_counted(monkeypatch):
    def wrong(per_token_loss, loss_mask, loss_agg_mode):
        return (per_token_loss * loss_mask).sum() / loss_mask.numel()

    monkeypatch.setattr(loss_stages, "aggregate", wrong)


def own_success_shown(monkeypatch):
    real = teacher_batch.demonstration

    def wrong(*rows, **settings):
        return real(*rows, **{**settings, "dont_reprompt_on_self_success": False})

    monkeypatch.setattr(teacher_batch, "demonstration", wrong)


def ratio_twice(monkeypatch):
    real = loss_stages.importance

    def wrong(loss, **tensors):
        return real(real(loss, **tensors), **tensors)

    monkeypatch.setattr(loss_stages, "importance", wrong)


class GRPOForgotten(SDPOTrainer):
    def _compute_loss(self, model, inputs):
        share = self.sdpo_config.hybrid_lambda
        return (1 - share) * self._self_distillation_loss(model, inputs)


class SharesSwapped(SDPOTrainer):
    def _compute_loss(self, model, inputs):
        share, grpo = self.sdpo_config.hybrid_lambda, super(SDPOTrainer, self)._compute_loss
        own = self._self_distillation_loss(model, inputs)
        return share * own + (1 - share) * grpo(model, inputs)


class Undropped(SDPOTrainer):
    """The student's dropout is off while the loss is computed."""

    def _self_distillation_loss(self, model, inputs):
        modules: list[Any] = [m for m in model.modules() if hasattr(m, "attention_dropout")]
        for module in modules:
            module.attention_dropout = 0.0
        loss = super()._self_distillation_loss(model, inputs)
        for module in modules:
            module.attention_dropout = 0.2
        return loss


class TeacherNotUnderAutocast(SDPOTrainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        real = self.teacher.logits

        def wrong(student, batch):
            with torch.autocast("cpu", enabled=False):
                return real(student, batch)

        self.teacher.logits = wrong


class AnchorFollows(SDPOTrainer):
    """The KL term pulls towards the present student."""

    def _generate_and_score_completions(self, inputs):
        live = dict(self.model.named_parameters())
        assert self.reference_policy is not None
        with torch.no_grad():
            for name, weight in self.reference_policy.named_parameters().items():
                weight.copy_(live[name])
        return super()._generate_and_score_completions(inputs)


def sign_of_the_bonus(monkeypatch):
    real = policy_terms.PolicyTerms.added_to

    def wrong(self, loss, config):
        return 2 * loss - real(self, loss, config)

    monkeypatch.setattr(policy_terms.PolicyTerms, "added_to", wrong)


def terms_of_rows_with_signal(monkeypatch):
    real = sdpo.trainer.micro_batch_loss.MicroBatchLoss.__call__

    def wrong(self, model, batch, *, observed):
        signal = batch["self_distillation_mask"].unsqueeze(-1).long()
        masked = {**batch, "response_mask": batch["response_mask"] * signal}
        return real(self, model, masked, observed=observed)

    monkeypatch.setattr(sdpo.trainer.micro_batch_loss.MicroBatchLoss, "__call__", wrong)


def not_normalised(monkeypatch):
    """The loss is divided by the width of the batch, not by the greatest length."""
    real = SDPOTrainer._self_distillation_loss

    def wrong(self, model, inputs):
        right = self.micro_batch_loss
        self.micro_batch_loss = replace(right, padded_width=6)
        loss = real(self, model, inputs)
        self.micro_batch_loss = right
        return loss

    monkeypatch.setattr(SDPOTrainer, "_self_distillation_loss", wrong)


NORM = "seq-mean-token-sum-norm"
OTHER_RUNS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "temperature on one side only": ({"temperature": 0.7}, {}, {}),
    "ratio applied twice": ({"steps_per_generation": 4, "max_steps": 6}, {"is_clip": 10.0}, {}),
    "entropy bonus: subtracted": ({}, {"entropy_coeff": 0.1}, {}),
    "entropy bonus: rows with signal only": ({}, {"entropy_coeff": 0.1}, {}),
    "KL anchor: follows the student": ({}, {"use_kl_loss": True, "kl_loss_coef": 0.5}, {}),
    "hybrid: GRPO forgotten": ({}, {"hybrid_lambda": 0.3}, {}),
    "hybrid: shares swapped": ({}, {"hybrid_lambda": 0.3}, {}),
    "hybrid: teacher's own top-k": ({}, {"hybrid_lambda": 0.3}, {}),
    "dropout: student without it": ({}, {}, {"attention_dropout": 0.2}),
    "bf16: loss not divided": ({"bf16": True}, {}, {}),
    "bf16: teacher in float32": ({"bf16": True}, {}, {}),
    "bf16: teacher's own top-k": ({"bf16": True}, {}, {}),
    "effective: average without the scale": ({}, EFFECTIVE, {}),
    "effective: teacher's own top-k": ({}, EFFECTIVE, {}),
    "norm: divided by the batch's width": (
        {"max_completion_length": 9},
        {"loss_agg_mode": NORM},
        {},
    ),
}
"""Arguments of TRL, of SDPO and of the model for faults that need others."""

FAULTS = {
    "entropy bonus: subtracted": (sign_of_the_bonus, "accumulate"),
    "entropy bonus: rows with signal only": (terms_of_rows_with_signal, "accumulate"),
    "KL anchor: follows the student": (AnchorFollows, "accumulate"),
    "hybrid: GRPO forgotten": (GRPOForgotten, "accumulate"),
    "hybrid: shares swapped": (SharesSwapped, "accumulate"),
    "hybrid: teacher's own top-k": (own_support, "support"),
    "dropout: student without it": (Undropped, "log_probs"),
    "bf16: loss not divided": (NotDivided, "accumulate"),
    "bf16: teacher in float32": (TeacherNotUnderAutocast, "log_probs"),
    "bf16: teacher's own top-k": (own_support, "support"),
    "effective: average without the scale": (Unscaled, "teacher_update"),
    "effective: teacher's own top-k": (own_support, "support"),
    "norm: divided by the batch's width": (not_normalised, "aggregate"),
    "loss not divided by accumulation steps": (NotDivided, "accumulate"),
    "EMA per micro-batch": (AveragedPerMicroBatch, "teacher_update"),
    "teacher in train mode with dropout": (DroppingTeacher, "log_probs"),
    "temperature on one side only": (one_sided_temperature, "log_probs"),
    "system message dropped": (no_system_message, "teacher_prompt"),
    "teacher's own top-k": (own_support, "support"),
    "masked rows counted in the denominator": (masked_rows_counted, "aggregate"),
    "own success shown": (own_success_shown, "demonstration"),
    "ratio applied twice": (ratio_twice, "importance"),
    "EMA twice": (WrongRate, "teacher_update"),
    "gradient changed before the step": (WrongStep, "optimizer"),
}


AS_OTHERS = (
    "hybrid: GRPO forgotten",
    "hybrid: teacher's own top-k",
    "bf16: teacher's own top-k",
    "effective: teacher's own top-k",
)


@pytest.mark.parametrize("fault", slow_are(AS_OTHERS, FAULTS))
def test_a_planted_fault_is_named_with_its_stage(fault, tmp_path, monkeypatch, undrawn):
    plant, stage = FAULTS[fault]
    args, settings, changes = OTHER_RUNS.get(fault, ({}, {}, {}))
    few = ("masked rows counted in the denominator", "entropy bonus: rows with signal only")
    reward = OneSuccess() if fault in few else None
    kind = SDPOTrainer
    if isinstance(plant, type):
        kind = plant
    else:
        plant(monkeypatch)
    model = lora() if settings == EFFECTIVE else tiny_trainer.model(**changes)
    trainer = audited(tmp_path, kind=kind, args=args, reward=reward, model=model, **settings)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ParityWarning)
        trainer.train()
    named = [row["first_moved"] for row in rows_of(trainer) if row["first_moved"]]
    # In the first update the teacher is still the student, and a divergence is mostly rounding.
    assert set(named[1:] or named) == {stage}
    assert any(f"{stage} moved first" in str(warning.message) for warning in caught)
    assert stage in NAMES
