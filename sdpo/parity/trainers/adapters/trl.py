"""TRL's own trainer, `trl.experimental.sdpo.SDPOTrainer`."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from sdpo.parity.cases.checked_call import CandidateError, NotCoveredError
from sdpo.parity.cases.stages import NAMES as STAGE_NAMES
from sdpo.parity.trainers.recording.adapter_base import (
    COMMON_IMPORTS,
    HFTrainer,
    Settings,
    StageRecorder,
    TrainerParts,
)
from sdpo.parity.trainers.recording.hf_trainer import HFTrainerAdapter
from sdpo.parity.trainers.recording.hooks import Arguments, installed_versions
from sdpo.parity.trainers.recording.scripted_world import feedback_varies
from sdpo.parity.trainers.scenarios.scenario import Scenario

NOT_SHOWN = ("feedback", "demonstration")
NAMES = {
    "alpha": "distillation_alpha",
    "distillation_add_tail": "distillation_add_tail",
    "is_clip": "distillation_is_clip",
    "teacher_update_rate": "teacher_update_rate",
    "success_reward_threshold": "success_reward_threshold",
    "dont_reprompt_on_self_success": "dont_reprompt_on_self_success",
    "remove_thinking_from_demonstration": "remove_thinking_from_demonstration",
    "include_environment_feedback": "include_environment_feedback",
    "environment_feedback_only_without_solution": "environment_feedback_only_without_solution",
    "max_reprompt_len": "max_reprompt_len",
    "reprompt_template": "reprompt_template",
    "solution_template": "solution_template",
    "feedback_template": "feedback_template",
}
"""verl's names and TRL's."""

MODES = {
    "full_logits": "compute_full_logit_self_distillation_loss",
    "topk_logits": "compute_topk_self_distillation_loss",
    "sampled_token": "compute_sampled_token_self_distillation_loss",
}
"""Values of `distillation_mode`, and the function that each goes through."""

AGGREGATIONS = ("token-mean", "seq-mean-token-mean")


class TRL(HFTrainerAdapter):
    """`trl.experimental.sdpo.SDPOTrainer`.

    It does not show which feedback counts, nor the demonstrations; both reach `teacher_prompt`.
    Releases 1.0 to 1.5 have an SDPO trainer of another structure, earlier ones have none.
    """

    name = "trl"
    package = "trl"
    versions = ">=1.6,<2"
    install = "'sdpo[train]'"
    imports = (*COMMON_IMPORTS, "trl.experimental.sdpo")
    teacher_adapter = "teacher"
    loss_metrics = ("self_distillation/distillation_loss",)
    feedback_columns: ClassVar[tuple[str, ...]] = ("privileged_context",)
    stages: ClassVar[tuple[str, ...]] = tuple(s for s in STAGE_NAMES if s not in NOT_SHOWN)

    def build(self, parts: TrainerParts) -> tuple[Any, Mapping[str, object]]:
        """Build the trainer, which reads feedback from the column `privileged_context`."""
        from trl.experimental.sdpo import SDPOConfig, SDPOTrainer

        _check_expressible(parts)
        args = SDPOConfig(**{**parts.arguments, **_their_settings(parts)})
        trainer = SDPOTrainer(
            model=parts.model,
            reward_funcs=parts.rewards,
            args=args,
            processing_class=parts.tokenizer,
            train_dataset=parts.dataset,
            optimizers=(parts.optimizer, None),
        )
        return trainer, _effective_settings(trainer.args)

    def teacher(self, trainer: HFTrainer) -> nn.Module | None:
        """Return the model loaded from the student's path; with LoRA the student itself."""
        return trainer.teacher_model

    def observe(self, trainer: HFTrainer, recorder: StageRecorder) -> None:
        """Watch the prompt builder, and the functions that the loss is made of."""
        import trl.experimental.sdpo.loss_utils as parts
        import trl.experimental.sdpo.sdpo_trainer as module

        mode, watch, loss = trainer.args.distillation_mode, recorder.watch, _Loss(recorder)
        watch.function(
            trainer.teacher_context_builder,
            "_tokenize_teacher_messages",
            lambda given, _: recorder.prompts("teacher_prompt", given["teacher_messages_list"]),
        )
        watch.function(module, MODES[mode], loss.divergence, required=False)
        watch.function(
            module, "apply_importance_sampling_clipping", loss.importance, required=False
        )
        watch.function(module, "selective_log_softmax", loss.log_probs, required=False)
        watch.function(parts, "selective_log_softmax", loss.log_probs, required=False)
        watch.function(parts, "compute_divergence", loss.compared, required=False)
        watch.function(parts, "add_tail_bucket", loss.support, required=False)
        watch.function(trainer, "_compute_self_distillation_loss", loss.aggregate)

    def sources(self, trainer: HFTrainer) -> Mapping[str, object]:
        """Return where TRL computes each stage."""
        import trl.experimental.sdpo.loss_utils as parts
        import trl.experimental.sdpo.sdpo_trainer as module

        kind: Any = type(trainer)
        builder = type(trainer.teacher_context_builder)
        loss = getattr(module, MODES[trainer.args.distillation_mode])
        follow = (
            "PEFTAdapterEMACallback"
            if hasattr(trainer.model, "peft_config")
            else ("SyncTeacherModelCallback")
        )
        return {
            **dict.fromkeys(("teacher_prompt", "distillation_mask"), builder.build),
            "teacher_tokens": builder._tokenize_teacher_messages,
            "log_probs": kind._compute_teacher_student_logits,
            **dict.fromkeys(("support", "tail", "divergence"), loss),
            "importance": parts.apply_importance_sampling_clipping,
            **dict.fromkeys(("aggregate", "gradient"), kind._compute_self_distillation_loss),
            "accumulate": kind.compute_loss,
            "teacher_update": getattr(module, follow).on_step_end,
        }


class _Loss:
    """Turns calls of TRL's functions into stage values; the student always comes first."""

    def __init__(self, recorder: StageRecorder):
        self.recorder = recorder

    def next(self, stage: str, value: Any) -> None:
        """Record the student's value, or the teacher's if the student's is there already."""
        micro = self.recorder.micro
        done = micro is not None and f"{stage}.student" in micro.values
        self.recorder.values({f"{stage}.{'teacher' if done else 'student'}": value})

    def divergence(self, arguments: Arguments, result: Any) -> None:
        """Record the loss per token, for the weighted one too, which may still overwrite it."""
        self.recorder.values({"divergence": result, "importance": result})

    def importance(self, arguments: Arguments, result: Any) -> None:
        """Record the weighted loss per token."""
        self.recorder.values({"importance": result})

    def log_probs(self, arguments: Arguments, result: Any) -> None:
        """Record log-probs of the sampled tokens."""
        self.next("log_probs", result)

    def support(self, arguments: Arguments, result: Any) -> None:
        """Record log-probs on the support before the tail is added."""
        self.next("support", arguments["log_probs"])

    def compared(self, arguments: Arguments, result: Any) -> None:
        """Record the two distributions that are compared, the tail included."""
        full = self.recorder.trainer.args.distillation_mode == "full_logits"
        stage = "support" if full else "tail"
        self.recorder.values(
            {
                f"{stage}.student": arguments["student_log_probs"],
                f"{stage}.teacher": arguments["teacher_log_probs"],
            }
        )

    def aggregate(self, arguments: Arguments, result: Any) -> None:
        """Record the loss of the micro-batch.

        Raises:
            CandidateError: it was computed past the functions that are watched.
        """
        self.recorder.values({"aggregate": result})
        signal = bool((arguments["distillation_logits"].loss_mask != 0).any())
        micro = self.recorder.micro
        if signal and micro is not None and "divergence" not in micro.values:
            mode = self.recorder.trainer.args.distillation_mode
            raise CandidateError(
                "config",
                f"hook {MODES[mode]} did not fire in a loss with distillation_mode={mode!r}; "
                f"versions: {installed_versions('trl')}",
            )


def _check_expressible(parts: TrainerParts) -> None:
    """Refuse what TRL has no setting for.

    Raises:
        NotCoveredError: naming the setting.
    """
    wanted, scenario = parts.settings, parts.scenario
    problems = {
        "teacher_regularization='trust-region': no teacher_model_kind mixes logits": (
            wanted.teacher_regularization != "ema"
        ),
        f"loss_agg_mode={scenario.loss_agg_mode!r}: it always takes the mean over rows of their "
        "token means": scenario.loss_agg_mode not in AGGREGATIONS,
        "feedback that differs between the rollouts of a prompt: the column privileged_context "
        "has one text for each prompt": feedback_varies(scenario),
        "a conversation that does not end with the user: it refuses that": _ends_otherwise(
            scenario
        ),
    }
    if inexpressible := [text for text, present in problems.items() if present]:
        raise NotCoveredError("TRL's SDPOTrainer cannot express " + "; ".join(inexpressible))


def _ends_otherwise(scenario: Scenario) -> bool:
    """Whether a conversation's last message is not the user's."""
    return any(
        conversation[-1]["role"] != "user"
        for generation in scenario.generations
        for conversation in generation.conversations
    )


def _their_settings(parts: TrainerParts) -> Settings:
    """Translate the scenario's settings to TRL's names."""
    wanted = parts.settings
    settings = {theirs: getattr(wanted, own) for own, theirs in NAMES.items()}
    if not wanted.full_logit_distillation:
        settings["distillation_mode"] = "sampled_token"
    elif wanted.distillation_topk is None:
        settings["distillation_mode"] = "full_logits"
    else:
        settings |= {
            "distillation_mode": "topk_logits",
            "distillation_topk": wanted.distillation_topk,
        }
    return settings | {
        "teacher_model_kind": "ema",
        "max_prompt_length": None,
        "chat_template_kwargs": dict(wanted.apply_chat_template_kwargs) or None,
    }


def _effective_settings(args: Any) -> Settings:
    """Read the settings of a built trainer under verl's names."""
    settings = {own: getattr(args, theirs) for own, theirs in NAMES.items()}
    sampled = args.distillation_mode == "sampled_token"
    if not sampled:
        settings["distillation_topk"] = args.distillation_topk
    return settings | {
        "full_logit_distillation": not sampled,
        "teacher_regularization": "ema",
        "temperature": args.temperature,
        "grad_clip": args.max_grad_norm,
    }
