"""Candidates that expose every stage: our implementation, and the transcription."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sdpo.fixtures import GoldenCase, GoldenFamily
from sdpo.loss import self_distillation
from sdpo.parity.candidates.live_verl import LiveVerl
from sdpo.parity.cases.callables import location_of
from sdpo.parity.cases.loss_case import LOSS_SETTINGS, LossCase, transcription_trace
from sdpo.parity.cases.stage_trace import StageTrace
from sdpo.parity.cases.stages import NAMES
from sdpo.parity.compare.verdict import CaseResult
from sdpo.parity.recorded import updates
from sdpo.parity.recorded.settings import run_config_family
from sdpo.parity.recorded.teacher_prompts import Record, transcription_record
from sdpo.prompt.teacher_batch import Attempts, teacher_batch
from sdpo.reference.loss import loss_from_logits
from sdpo.settings.config import SDPOConfig


class Own:
    """Our implementation: the loss, the teacher prompt and the update of `sdpo`."""

    name = "sdpo"
    kind = "implementation"
    dtypes_are_judged = True
    stages = NAMES
    notes = ()
    location = location_of(self_distillation.self_distillation_loss)
    function = staticmethod(self_distillation.self_distillation_loss)

    def trace(self, case: LossCase) -> Mapping[str, Tensor]:
        """Stage values on a loss case, gradient included."""
        leaf = case.student_logits.detach().clone().requires_grad_(True)
        stages = self_distillation.self_distillation_stages(
            leaf,
            case.teacher_logits,
            case.responses,
            case.response_mask,
            old_log_probs=case.old_log_probs,
            self_distillation_mask=case.self_distillation_mask,
            rollout_is_weights=case.rollout_is_weights,
            config=case.config,
        )
        (gradient,) = torch.autograd.grad(stages.aggregate, leaf)
        values = stages.named() | {"gradient": gradient}
        return {name: tensor.detach() for name, tensor in values.items()}

    def config_results(self, family: GoldenFamily) -> list[CaseResult]:
        """Our defaults and presets against the reference's layers."""
        return run_config_family(family)

    def prompt_record(
        self, golden: GoldenCase, tensors: Mapping[str, Tensor], tokenizer: Any
    ) -> Record | None:
        """Stage values of a recorded teacher prompt, each from our value of the stage before.

        None in another loss mode, for which ours is not enabled.
        """
        mode, inputs = golden.config["loss_mode"], golden.entry["inputs"]
        config = SDPOConfig(**golden.config["self_distillation"], enabled=mode == "sdpo")
        if not config.enabled:
            return None
        attempts = Attempts(
            inputs["raw_prompt"],
            tensors["in.responses"],
            tensors["in.response_mask"],
            tensors["in.token_level_rewards"],
            inputs["uids"],
            (inputs["reward_extra_infos"] or {}).get("feedback", ()),
        )
        batch = teacher_batch(
            attempts,
            tokenizer,
            config,
            chat_template_kwargs=golden.config["apply_chat_template_kwargs"],
        )
        return dict(batch.trace)

    def update_trace(
        self, family: GoldenFamily, golden: GoldenCase, tensors: dict[str, Tensor]
    ) -> StageTrace:
        """A recorded case of one or three updates."""
        return updates.run_ours(family, golden, tensors)


def reference_loss(
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
    """The transcription as a loss function, its settings from a config."""
    settings: dict[str, Any] = {name: getattr(config, name) for name in LOSS_SETTINGS}
    return loss_from_logits(
        student_logits,
        teacher_logits,
        responses,
        response_mask,
        old_log_probs=old_log_probs,
        self_distillation_mask=self_distillation_mask,
        rollout_is_weights=rollout_is_weights,
        **settings,
    )


class Transcription:
    """The transcription in `reference/`: how much of the recording it reproduces."""

    name = "reference"
    kind = "transcription"
    dtypes_are_judged = True
    stages = tuple(name for name in NAMES if name != "config")
    notes = ()
    location = location_of(loss_from_logits)
    function = staticmethod(reference_loss)

    def trace(self, case: LossCase) -> Mapping[str, Tensor]:
        """Stage values on a loss case, gradient included."""
        return transcription_trace(case)

    def prompt_record(
        self, golden: GoldenCase, tensors: Mapping[str, Tensor], tokenizer: Any
    ) -> Record | None:
        """Stage values of a recorded teacher prompt; None where it builds none."""
        return transcription_record(golden, tensors, tokenizer)

    def update_trace(
        self, family: GoldenFamily, golden: GoldenCase, tensors: dict[str, Tensor]
    ) -> StageTrace:
        """A recorded case of one or three updates, in float32."""
        return updates.run_reference(family, golden, tensors, torch.float32)


WHOLE = (Own, Transcription, LiveVerl)
