"""The PyPI package `sdpo-rl`: an SDPO trainer on top of TRL's GRPO trainer."""

import importlib
import importlib.metadata
from collections.abc import Mapping
from typing import Any, ClassVar

from packaging.specifiers import SpecifierSet
from torch import nn

from sdpo.parity.cases.checked_call import NotCoveredError
from sdpo.parity.cases.stages import NAMES
from sdpo.parity.trainers.recording.adapter_base import (
    COMMON_IMPORTS,
    HFTrainer,
    Settings,
    StageRecorder,
    TrainerParts,
)
from sdpo.parity.trainers.recording.hf_trainer import HFTrainerAdapter
from sdpo.parity.trainers.recording.hooks import Arguments, Seen
from sdpo.settings.config import SDPOConfig

SAME_NAME = (
    "full_logit_distillation",
    "alpha",
    "distillation_topk",
    "distillation_add_tail",
    "is_clip",
    "teacher_update_rate",
    "success_reward_threshold",
    "dont_reprompt_on_self_success",
    "remove_thinking_from_demonstration",
    "include_environment_feedback",
    "environment_feedback_only_without_solution",
    "reprompt_truncation",
    "reprompt_template",
    "solution_template",
    "feedback_template",
)


TRITON_ONLY = SpecifierSet("==1.15.*")
"""Releases of TRL whose GRPO trainer has no log-probs on a CPU: in 1.15.0 `trl/trainer/utils.py`
calls in line 1638 what lines 504-509 set to None without Triton; 1.16.0 has a form for CPUs."""


class SdpoRl(HFTrainerAdapter):
    """`sdpo_rl.SDPOTrainer`."""

    name = "sdpo-rl"
    package = "sdpo-rl"
    versions = "==0.0.3"
    install = "'sdpo[peers]'"
    imports = (*COMMON_IMPORTS, "sdpo_rl")
    teacher_adapter = "sdpo_teacher"
    loss_metrics = ("sdpo/loss",)
    further_inputs: ClassVar[Mapping[str, str]] = {
        "rollout_is_weights": "importance_sampling_ratio",
        "response_mask": "tool_mask",
    }
    stages: ClassVar[tuple[str, ...]] = NAMES

    def build(self, parts: TrainerParts) -> tuple[Any, Mapping[str, object]]:
        """Build the trainer, which reads feedback from the reward function's `last_feedback`."""
        from trl import GRPOConfig  # pyright: ignore[reportPrivateImportUsage]

        _check_expressible(parts)
        model: Any = parts.model
        peer: Any = importlib.import_module("sdpo_rl")
        config = peer.SDPOConfig(**_their_settings(parts))
        trainer = peer.SDPOTrainer(
            model=model,
            args=GRPOConfig(**parts.arguments),
            sdpo_config=config,
            processing_class=parts.tokenizer,
            reward_funcs=parts.rewards,
            train_dataset=parts.dataset,
            optimizers=(parts.optimizer, None),
        )
        effective = {name: getattr(config, name) for name in SAME_NAME}
        effective |= {
            "max_reprompt_len": config.max_reprompt_length,
            "teacher_regularization": "ema",
            "temperature": trainer.args.temperature,
            "grad_clip": trainer.args.max_grad_norm,
        }
        return trainer, effective

    def teacher(self, trainer: HFTrainer) -> nn.Module | None:
        """Return the deep copy; with LoRA the student, of which the teacher is another adapter."""
        return trainer.ref_model

    def observe(self, trainer: HFTrainer, recorder: StageRecorder) -> None:
        """Watch the functions that its trainer and its loss are made of."""
        loss: Any = importlib.import_module("sdpo_rl.distillation")
        module: Any = importlib.import_module("sdpo_rl.trainer")

        watch, settings = recorder.watch.function, trainer.sdpo_config
        for name, argument, stage in (
            ("build_teacher_prompts", "feedback_list", "feedback"),
            ("build_teacher_messages", None, "teacher_prompt"),
            ("compute_self_distillation_mask", None, "distillation_mask"),
        ):
            watch(module, name, _prompts(recorder, stage, argument))
        watch(
            module,
            "select_demonstration",
            lambda _, result: recorder.prompt("demonstration", result),
        )
        watch(module, "compute_self_distillation_loss", _whole_loss(recorder))
        watch(loss, "aggregate_loss", _argument_of(recorder, "importance", "loss_mat"))
        watch(loss, "top_k_kl_divergence", _result_of(recorder, "divergence"))
        if settings.distillation_add_tail:
            watch(loss, "add_tail_bucket", _alternating(recorder))

    def sources(self, trainer: HFTrainer) -> Mapping[str, object]:
        """Return where the package computes each stage."""
        loss: Any = importlib.import_module("sdpo_rl.distillation")
        module: Any = importlib.import_module("sdpo_rl.trainer")

        kind: Any = type(trainer)
        follow = type(trainer.ema_callback)
        return {
            **dict.fromkeys(("feedback", "teacher_tokens"), kind._generate_and_score_completions),
            "demonstration": module.select_demonstration,
            "teacher_prompt": module.build_teacher_prompts,
            "distillation_mask": module.compute_self_distillation_mask,
            **dict.fromkeys(("log_probs", "support", "accumulate"), kind.compute_loss),
            "tail": loss.add_tail_bucket,
            "divergence": loss.top_k_kl_divergence,
            "importance": loss.apply_importance_sampling_correction,
            "aggregate": loss.aggregate_loss,
            "gradient": loss.compute_self_distillation_loss,
            "teacher_update": follow.step,
        }


def _check_expressible(parts: TrainerParts) -> None:
    """Refuse what the package has no setting for.

    Raises:
        NotCoveredError: naming the setting.
    """
    wanted, scenario = parts.settings, parts.scenario
    problems = {
        "distillation_topk=None: it has no full-vocabulary mode": wanted.full_logit_distillation
        and wanted.distillation_topk is None,
        "teacher_regularization='trust-region': its trainer raises NotImplementedError": (
            wanted.teacher_regularization != "ema"
        ),
        f"loss_agg_mode={scenario.loss_agg_mode!r}: it always takes the token mean": (
            scenario.loss_agg_mode != "token-mean"
        ),
        f"several optimizer steps from one generation on a CPU: TRL {_trl_version()} computes the "
        "log-probs at the weights that generated by a Triton kernel alone": (
            not scenario.on_policy and TRITON_ONLY.contains(_trl_version())
        ),
    }
    if inexpressible := [text for text, present in problems.items() if present]:
        raise NotCoveredError("sdpo-rl cannot express " + "; ".join(inexpressible))


def _trl_version() -> str:
    """Which TRL the package runs on."""
    return importlib.metadata.version("trl")


def _their_settings(parts: TrainerParts) -> Settings:
    """Translate the scenario's settings to the package's names."""
    wanted: SDPOConfig = parts.settings
    settings = {name: getattr(wanted, name) for name in SAME_NAME}
    if settings["distillation_topk"] is None:
        del settings["distillation_topk"]
    return settings | {
        "max_reprompt_length": wanted.max_reprompt_len,
        "apply_chat_template_kwargs": dict(wanted.apply_chat_template_kwargs),
        "teacher_mode": "lora_ema" if parts.scenario.lora else "ema",
    }


def _prompts(recorder: StageRecorder, stage: str, argument: str | None) -> Seen:
    """Record an argument, or the result, as a prompt stage of all rows."""

    def seen(arguments: Arguments, result: Any) -> None:
        recorder.prompts(stage, arguments[argument] if argument else result)

    return seen


def _argument_of(recorder: StageRecorder, stage: str, argument: str) -> Seen:
    """Record an argument as a stage value."""
    return lambda arguments, _: recorder.values({stage: arguments[argument]})


def _result_of(recorder: StageRecorder, stage: str) -> Seen:
    """Record a result as a stage value."""
    return lambda _, result: recorder.values({stage: result})


def _whole_loss(recorder: StageRecorder) -> Seen:
    """Record what the loss function was given, and its result."""

    def seen(arguments: Arguments, result: Any) -> None:
        recorder.values(
            {
                "log_probs.student": arguments["student_log_probs"],
                "log_probs.teacher": arguments["teacher_log_probs"],
                "support.student": arguments["student_topk_log_probs"],
                "support.teacher": arguments["teacher_topk_log_probs"],
                "aggregate": result[0],
            }
        )

    return seen


def _alternating(recorder: StageRecorder) -> Seen:
    """Record the results of the tail function, which is called for the student first."""

    def seen(arguments: Arguments, result: Any) -> None:
        done = recorder.micro is not None and "tail.student" in recorder.micro.values
        recorder.values({"tail.teacher" if done else "tail.student": result})

    return seen
