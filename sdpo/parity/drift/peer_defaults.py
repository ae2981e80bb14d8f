"""Defaults of other packages, read by importing them; nothing of theirs is written down here.

Only names are: which of a package's settings is verl's, and how its value reads in verl's terms.
"""

import dataclasses
import importlib
import importlib.metadata
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Reading = Callable[[Any], object]
"""Turns a package's value of a setting into verl's terms."""


@dataclass(frozen=True)
class Peer:
    """Where a package keeps its settings, and what they are called.

    `names` maps verl's names to the package's; `readings` says what a value means in verl's terms
    where it is not the same. `fixed` says what a package always does where verl has a setting and
    the package none. `further` maps settings that are no part of SDPO to verl's (one name, or
    several joined by "and"), `remarks` says what one of them does.
    """

    name: str
    distribution: str
    module: str
    attribute: str
    tested: str
    names: Mapping[str, str] = field(default_factory=dict)
    readings: Mapping[str, Reading] = field(default_factory=dict)
    fixed: Mapping[str, str] = field(default_factory=dict)
    further: Mapping[str, str] = field(default_factory=dict)
    remarks: Mapping[str, str] = field(default_factory=dict)


class PeerDefault(NamedTuple):
    """A default in verl's terms, and the name and value that it has in its package."""

    value: object
    theirs: str
    raw: object


class OtherDefault(NamedTuple):
    """A package's default of a setting that SDPO does not have, and what it is said to mean."""

    name: str
    value: object
    meaning: str


@dataclass(frozen=True)
class Defaults:
    """What was read of a package.

    `version` and `problem` say whether it could be read; `values` are under verl's names, `other`
    are all other settings, and `gone` the names that it no longer has.
    """

    name: str
    version: str = ""
    problem: str = ""
    values: Mapping[str, PeerDefault] = field(default_factory=dict)
    other: tuple[OtherDefault, ...] = ()
    gone: tuple[str, ...] = ()


_SHARED = (
    "distillation_topk",
    "distillation_add_tail",
    "teacher_update_rate",
    "success_reward_threshold",
    "dont_reprompt_on_self_success",
    "remove_thinking_from_demonstration",
    "include_environment_feedback",
    "environment_feedback_only_without_solution",
    "reprompt_template",
    "solution_template",
    "feedback_template",
)
_SAME = {name: name for name in _SHARED}
_TRL = Peer(
    "trl",
    "trl",
    "trl.experimental.sdpo",
    "SDPOConfig",
    "1.16",
    _SAME
    | {
        "full_logit_distillation": "distillation_mode",
        "alpha": "distillation_alpha",
        "is_clip": "distillation_is_clip",
        "temperature": "temperature",
        "teacher_regularization": "teacher_model_kind",
        "max_reprompt_len": "max_reprompt_len",
        "hybrid_lambda": "distillation_weight",
        "lr": "learning_rate",
        "grad_clip": "max_grad_norm",
    },
    {
        "full_logit_distillation": lambda mode: mode != "sampled_token",
        "hybrid_lambda": lambda weight: 1 - weight,
    },
    # sdpo_trainer.py of trl 1.16.0: _compute_self_distillation_loss, the teacher's tokenizer, and
    # _compute_policy_loss, which is left out while distillation_weight is 1.
    fixed={
        "loss_agg_mode": "always the mean over all rows of their token means",
        "reprompt_truncation": "always left",
    },
    further={
        "loss_type": "actor.loss_agg_mode",
        "max_prompt_length": "data.max_prompt_length",
        "max_completion_length": "data.max_response_length",
        "num_generations": "rollout.n",
        "num_generations_eval": "rollout.val_kwargs.n",
        "top_p": "rollout.top_p",
        "top_k": "rollout.top_k",
        "repetition_penalty": "rollout.repetition_penalty",
        "use_vllm": "rollout.name",
        "bf16": "actor.fsdp_config.dtype",
        "shuffle_dataset": "data.shuffle",
        "chat_template_kwargs": "data.apply_chat_template_kwargs",
        "generation_batch_size": "data.train_batch_size and rollout.n",
        "steps_per_generation": "data.train_batch_size and actor.ppo_mini_batch_size",
        "num_iterations": "actor.ppo_epochs",
        "beta": "actor.kl_loss_coef and actor.use_kl_loss",
        "epsilon": "actor.clip_ratio_low",
        "epsilon_high": "actor.clip_ratio_high",
        "scale_rewards": "algorithm.norm_adv_by_std_in_grpo",
        "gradient_checkpointing": "model.enable_gradient_checkpointing",
        "use_liger_kernel": "model.use_liger",
        "trust_remote_code": "model.trust_remote_code",
        "model_init_kwargs": "model.override_config",
        "vllm_gpu_memory_utilization": "rollout.gpu_memory_utilization",
        "vllm_tensor_parallel_size": "rollout.tensor_model_parallel_size",
        "vllm_max_model_length": "rollout.max_model_len",
        "vllm_enable_sleep_mode": "rollout.free_cache_engine",
    },
    remarks={
        "loss_type": "of the policy loss alone, which distillation_weight=1 leaves out: the "
        "distillation loss does not read it",
        "max_prompt_length": "prompts are cut to their last tokens; verl refuses or filters longer "
        "ones",
    },
)
_SDPO_RL = Peer(
    "sdpo-rl",
    "sdpo-rl",
    "sdpo_rl.config",
    "SDPOConfig",
    "0.0.3",
    _SAME
    | {
        "enabled": "enabled",
        "full_logit_distillation": "full_logit_distillation",
        "alpha": "alpha",
        "is_clip": "is_clip",
        "teacher_regularization": "teacher_mode",
        "max_reprompt_len": "max_reprompt_length",
        "reprompt_truncation": "reprompt_truncation",
        "apply_chat_template_kwargs": "apply_chat_template_kwargs",
        "teacher_mode": "teacher_mode",
    },
    fixed={"loss_agg_mode": "always token-mean"},
)
PEERS = (_TRL, _SDPO_RL)


def read(peer: Peer) -> Defaults:
    """Read the defaults of an installed package, or say what prevents it."""
    try:
        version = importlib.metadata.version(peer.distribution)
    except importlib.metadata.PackageNotFoundError:
        return Defaults(peer.name, problem="not installed")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = getattr(importlib.import_module(peer.module), peer.attribute)
        settings = {f.name: f for f in dataclasses.fields(config)}
    except (ImportError, AttributeError, TypeError, RuntimeError) as error:
        text = " ".join(str(error).split())
        problem = f"cannot read {peer.module}.{peer.attribute}: {type(error).__name__}: {text}"
        return Defaults(peer.name, version, problem)
    values = {}
    for name, theirs in peer.names.items():
        if theirs in settings:
            value = _default_of(settings[theirs])
            reading = peer.readings.get(name, lambda same: same)
            values[name] = PeerDefault(reading(value), theirs, value)
    known = dict.fromkeys((*peer.names.values(), *peer.further))
    gone = tuple(theirs for theirs in known if theirs not in settings)
    # only what the package itself declares, not what it inherits from elsewhere
    package = peer.module.split(".")[0]
    classes = [c for c in config.__mro__ if c.__module__.split(".")[0] == package]
    declared = {name for c in classes for name in vars(c).get("__annotations__", {})}
    other = tuple(
        OtherDefault(name, _default_of(f), _meaning(f))
        for name, f in settings.items()
        if name in declared and name not in peer.names.values()
    )
    return Defaults(peer.name, version, "", values, other, gone)


def _default_of(setting: dataclasses.Field[object]) -> object:
    """The default of a setting."""
    if setting.default is not dataclasses.MISSING:
        return setting.default
    if setting.default_factory is not dataclasses.MISSING:
        return setting.default_factory()
    return "required"


def _meaning(setting: dataclasses.Field[object]) -> str:
    """The first sentence of what a package says about its setting."""
    text = " ".join(str(setting.metadata.get("help", "")).split())
    return text.partition(". ")[0].rstrip(".")
