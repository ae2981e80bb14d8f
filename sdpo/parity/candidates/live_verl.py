"""The candidate `verl`: the real functions of a checkout of the fork, at all sixteen stages.

The transcription in `reference/` and the golden data stand for lasgroup/SDPO at 0e6d5106. Where a
checkout of it can be run, `sdpo audit verl` proves both again: its configuration, prompt builder,
forward pass, loss, update and teacher on every recorded case.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sdpo.fixtures import GoldenCase, GoldenFamily
from sdpo.parity.candidates.live_settings import run_live_config_family
from sdpo.parity.cases.callables import location_of
from sdpo.parity.cases.checked_call import (
    NO_GRAPH,
    BrokenGradientError,
    CandidateError,
    Location,
    guarded,
    scalar_of,
)
from sdpo.parity.cases.loss_case import LossCase
from sdpo.parity.cases.stage_trace import StageTrace
from sdpo.parity.cases.stages import NAMES
from sdpo.parity.compare.verdict import CaseResult
from sdpo.parity.live_fork import losses
from sdpo.parity.live_fork.checkout import CheckoutError, find_checkout, inspect_checkout
from sdpo.parity.live_fork.modules import (
    CONFIG,
    CORE_ALGOS,
    DP_ACTOR,
    RAY_TRAINER,
    check_packages,
    live_function,
)
from sdpo.parity.live_fork.teacher_prompts import TOKEN_NAMES, Attempts, live_prompt
from sdpo.parity.live_fork.updates import live_update_actor
from sdpo.parity.recorded.golden_updates import batches, build
from sdpo.parity.recorded.teacher_prompts import Record
from sdpo.settings.config import SDPOConfig

_FUNCTIONS = {
    "config": (CONFIG, "SelfDistillationConfig"),
    "feedback": (RAY_TRAINER, "RayPPOTrainer._collect_feedback"),
    "demonstration": (RAY_TRAINER, "RayPPOTrainer._get_solution"),
    **dict.fromkeys(
        ("teacher_prompt", "teacher_tokens", "distillation_mask"),
        (RAY_TRAINER, "RayPPOTrainer._maybe_build_self_distillation_batch"),
    ),
    **dict.fromkeys(
        ("log_probs", "support"), (DP_ACTOR, "DataParallelPPOActor._forward_micro_batch")
    ),
    **dict.fromkeys(
        ("tail", "divergence", "importance", "gradient"),
        (CORE_ALGOS, "compute_self_distillation_loss"),
    ),
    "aggregate": (CORE_ALGOS, "agg_loss"),
    "accumulate": (DP_ACTOR, "DataParallelPPOActor.update_policy"),
    "optimizer": (DP_ACTOR, "DataParallelPPOActor._optimizer_step"),
    "teacher_update": (DP_ACTOR, "DataParallelPPOActor._update_teacher"),
}
"""Where the fork computes each stage."""


class LiveVerl:
    """A checkout of the fork; found by SDPO_VERL_CHECKOUT, or as an importable `verl`.

    Raises:
        CandidateError: there is no checkout that can be run, or it is another verl than the fork.
    """

    name = "verl"
    kind = "transcription"
    dtypes_are_judged = True
    stages = NAMES

    def __init__(self) -> None:
        try:
            self.root = find_checkout()
            check_packages()
            functions = {stage: live_function(*path) for stage, path in _FUNCTIONS.items()}
        except CheckoutError as error:
            raise CandidateError("config", str(error)) from error
        self.notes = (f"verl: {inspect_checkout(self.root).described()}",)
        locations = {stage: location_of(function) for stage, function in functions.items()}
        self.locations: dict[str, Location] = {
            stage: place for stage, place in locations.items() if place is not None
        }
        self.location = locations["importance"]

    def config_results(self, family: GoldenFamily) -> list[CaseResult]:
        """What the checkout's files set, against what is written down of the recorded commit.

        Raises:
            CandidateError: its configuration cannot be composed.
        """
        try:
            return run_live_config_family(self.root, family)
        except CheckoutError as error:
            raise CandidateError("config", str(error)) from error

    def trace(self, case: LossCase) -> Mapping[str, Tensor]:
        """Stage values on a loss case, gradient included.

        Raises:
            CandidateError: the checkout's code failed, or its loss does not go through `agg_loss`.
            BrokenGradientError: the loss has no graph to the student's logits.
        """
        leaf = case.student_logits.detach().clone().requires_grad_(True)
        live = self._loss(replace(case, student_logits=leaf))
        loss = scalar_of(live.loss)
        trace = {
            "log_probs.student": live.student["log_probs"],
            "log_probs.teacher": live.teacher["log_probs"],
            "divergence": live.divergence,
            "importance": live.per_token_loss,
            "loss_mask": live.loss_mask,
            "aggregate": loss,
        }
        for side, outputs in (("student", live.student), ("teacher", live.teacher)):
            if support := losses.support_of(outputs):
                trace[f"support.{side}"] = support[1]
        if "topk_indices" in live.student:
            trace["support.indices"] = live.student["topk_indices"]
        if live.support and case.mode.startswith("topk"):
            trace["tail.student"], trace["tail.teacher"] = live.support
        trace = {name: value.detach() for name, value in trace.items()}
        if not loss.requires_grad:
            raise BrokenGradientError(NO_GRAPH, trace)
        (gradient,) = guarded("gradient", torch.autograd.grad, loss, leaf, allow_unused=True)
        if gradient is None:
            raise BrokenGradientError(NO_GRAPH, trace)
        return trace | {"gradient": gradient}

    def _loss(self, case: LossCase) -> losses.LiveLoss:
        try:
            return guarded(
                "aggregate",
                losses.live_loss,
                case,
                {name: getattr(case.config, name) for name in losses.SETTINGS},
                temperature=case.config.temperature,
                loss_agg_mode=case.config.loss_agg_mode,
            )
        except CandidateError as error:
            if isinstance(error.__cause__, losses.LossCallError):
                raise CandidateError("importance", str(error.__cause__)) from error
            raise

    @property
    def function(self) -> Callable[..., Tensor]:
        """The fork's forward pass and loss as a function of logits."""
        return self.loss_from_logits

    def loss_from_logits(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        responses: Tensor,
        response_mask: Tensor,
        *,
        config: SDPOConfig,
        old_log_probs: Tensor | None = None,
        self_distillation_mask: Tensor | None = None,
        rollout_is_weights: Tensor | None = None,
    ) -> Tensor:
        """The loss of `(B, T, V)` logits, with a graph to the student's.

        Args:
            student_logits: of the model that learns.
            teacher_logits: of its teacher; they get no gradient.
            responses: `(B, T)` tokens.
            response_mask: `(B, T)`.
            config: settings of the loss.
            old_log_probs: `(B, T)`, for the ratio.
            self_distillation_mask: `(B,)`.
            rollout_is_weights: `(B, T)`.
        """
        case = LossCase(
            "loss",
            config,
            student_logits,
            teacher_logits,
            responses,
            response_mask,
            old_log_probs,
            self_distillation_mask,
            rollout_is_weights,
        )
        return scalar_of(self._loss(case).loss)

    def prompt_record(
        self, golden: GoldenCase, tensors: Mapping[str, Tensor], tokenizer: Any
    ) -> Record | None:
        """Stage values of a recorded teacher prompt; None where the fork builds none."""
        inputs = golden.entry["inputs"]
        attempts = Attempts(
            inputs["raw_prompt"],
            inputs["uids"],
            tensors["in.responses"],
            tensors["in.response_mask"],
            tensors["in.token_level_rewards"],
            inputs["reward_extra_infos"],
        )
        prompt = live_prompt(
            attempts,
            golden.config["self_distillation"],
            tokenizer,
            loss_mode=golden.config["loss_mode"],
            chat_template_kwargs=golden.config["apply_chat_template_kwargs"],
        )
        if prompt is None:
            return None
        return {
            "response_texts": prompt.response_texts,
            "feedback": prompt.feedback,
            "demonstration": prompt.demonstrations,
            "teacher_prompt": prompt.messages,
            "teacher_tokens": {name: prompt.tensors[name] for name in TOKEN_NAMES},
            "distillation_mask": prompt.tensors["self_distillation_mask"],
        }

    def update_trace(
        self, family: GoldenFamily, golden: GoldenCase, tensors: dict[str, Tensor]
    ) -> StageTrace:
        """A recorded case of one or three updates."""
        config = golden.config
        student, teacher, optimizer = build(family, golden)
        actor = live_update_actor(
            config["actor"],
            config["self_distillation"],
            student,
            optimizer,
            teacher,
            trust_region=config["teacher"] == "trust_region",
        )
        for batch, _ in batches(golden, tensors):
            actor.update(batch, config["temperature"])
        return actor.trace()
