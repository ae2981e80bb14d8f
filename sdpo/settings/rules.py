"""The rules that the settings of `SDPOConfig` obey, and how several names fit together."""

import difflib
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple, TypeGuard

from sdpo.settings.templates import SLOTS, TemplateError, check_template

LOSS_AGG_MODES = (
    "token-mean",
    "seq-mean-token-sum",
    "seq-mean-token-mean",
    "seq-mean-token-sum-norm",
)
_TEACHER_REGULARIZATIONS = ("ema", "trust-region")
_TEACHER_MODES = ("ema", "frozen", "trust_region", "lora_ema")
_LORA_AVERAGES = ("factors", "effective")
_MICRO_BATCH_SEMANTICS = ("verl", "exact")
_LOSS_IMPLEMENTATIONS = ("logits", "fused")
_SHARE_PROMPTS = ("none", "teacher", "both")
_TRUNCATIONS = ("left", "right", "error")
_KL_LOSS_TYPES = ("low_var_kl",)

DEFAULT_ALPHA = 0.5
DEFAULT_RATE = 0.05
DEFAULT_REPROMPT_LEN = 10240
DEFAULT_KL_LOSS_COEF = 0.001


RawSettings = Mapping[str, object]
"""Settings by name as a user gave them, not yet checked."""


def violations(settings: RawSettings) -> list[str]:
    """Say of each setting that breaks its rule which one, in one message each."""
    broken = [
        f"{name}={value!r}: {_RULES[name].text}"
        for name, value in settings.items()
        if name in _RULES and not _RULES[name].holds(value)
    ]
    for name in SLOTS.keys() & settings.keys():
        try:
            check_template(name, settings[name])
        except TemplateError as error:
            broken.append(str(error))
    alpha = settings.get("alpha", DEFAULT_ALPHA)
    if not settings.get("full_logit_distillation", True) and alpha != 1.0:
        broken.append(
            f"alpha={alpha!r}: must be 1.0 when full_logit_distillation is False, because "
            "the sampled token only estimates KL(student‖teacher)"
        )
    return broken + _conflicts(settings)


def _conflicts(settings: RawSettings) -> list[str]:
    """Say of each pair of settings that they name the same thing with different values.

    A setting at its default counts as not given.
    """
    contradictions = []
    mode = settings.get("teacher_mode")
    regularization = settings.get("teacher_regularization", "ema")
    rate = settings.get("teacher_update_rate", DEFAULT_RATE)
    if mode in _TEACHER_MODES and mode != "trust_region" and regularization == "trust-region":
        contradictions.append(
            f"teacher_mode={mode!r} contradicts teacher_regularization='trust-region': give one"
        )
    if mode == "frozen" and rate not in (0, DEFAULT_RATE):
        contradictions.append(
            f"teacher_mode='frozen' contradicts teacher_update_rate={rate!r}: a frozen teacher "
            "does not move, so leave the rate out"
        )
    length = settings.get("max_reprompt_len", DEFAULT_REPROMPT_LEN)
    alias = settings.get("max_reprompt_length")
    if alias is not None and length not in (alias, DEFAULT_REPROMPT_LEN):
        contradictions.append(
            f"max_reprompt_length={alias!r} contradicts max_reprompt_len={length!r}: they are the "
            "same setting, so give one"
        )
    if settings.get("lora_average", "factors") != "factors" and mode != "lora_ema":
        contradictions.append("lora_average='effective' needs teacher_mode='lora_ema'")
    return contradictions + _conflicts_of_policy_terms(settings)


def _conflicts_of_policy_terms(settings: RawSettings) -> list[str]:
    """Say of each setting that it does not go with an entropy bonus or a KL term."""
    conflicts: list[str] = []
    use_kl_loss = settings.get("use_kl_loss", False)
    coefficient = settings.get("kl_loss_coef", DEFAULT_KL_LOSS_COEF)
    if not use_kl_loss and coefficient != DEFAULT_KL_LOSS_COEF:
        conflicts.append(f"kl_loss_coef={coefficient!r} needs use_kl_loss=True")
    if not use_kl_loss and settings.get("entropy_coeff", 0.0) == 0:
        return conflicts
    if settings.get("loss_implementation") == "fused":
        conflicts.append(
            "loss_implementation='fused' never holds the logits that entropy_coeff and use_kl_loss "
            "need, and leaves out rows that they count: use 'logits'"
        )
    if settings.get("micro_batch_semantics") == "exact":
        conflicts.append(
            "micro_batch_semantics='exact' weighs micro-batches by their tokens with a teacher "
            "signal, entropy_coeff and use_kl_loss count all response tokens: use 'verl'"
        )
    return conflicts


def nearest(name: str, valid: list[str]) -> str:
    """A hint that names the valid name closest to a wrong one."""
    close = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.4)
    return f"; did you mean {close[0]!r}?" if close else f"; valid are {valid}"


Holds = Callable[[object], bool]


class Rule(NamedTuple):
    """Whether a value of a setting is allowed, and what a message says of it."""

    holds: Holds
    text: str


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(holds: Callable[[float], bool]) -> Holds:
    return lambda value: _is_number(value) and holds(value)


def _optional(holds: Holds) -> Holds:
    return lambda value: value is None or holds(value)


def _positive_integer(value: object) -> bool:
    return _is_integer(value) and value > 0


def _one_of(choices: tuple[str, ...]) -> Rule:
    return Rule(lambda value: value in choices, f"must be one of {', '.join(choices)}")


_SWITCH = Rule(lambda value: isinstance(value, bool), "must be True or False")
_SHARE = Rule(_number(lambda v: 0 <= v <= 1), "must lie in [0, 1]")
_POSITIVE = Rule(_number(lambda v: v > 0), "must be a finite number above 0")
_NOT_NEGATIVE = Rule(_number(lambda v: v >= 0), "must be a finite number, 0 or above")
_OPTIONAL_POSITIVE = Rule(_optional(_POSITIVE.holds), f"{_POSITIVE.text}, or None")

_RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "full_logit_distillation": _SWITCH,
        "alpha": _SHARE,
        "distillation_topk": Rule(
            _optional(_positive_integer), "must be an integer above 0, or None"
        ),
        "distillation_add_tail": _SWITCH,
        "is_clip": _OPTIONAL_POSITIVE,
        "loss_agg_mode": _one_of(LOSS_AGG_MODES),
        "temperature": _POSITIVE,
        "entropy_coeff": _NOT_NEGATIVE,
        "use_kl_loss": _SWITCH,
        "kl_loss_coef": _NOT_NEGATIVE,
        "kl_loss_type": _one_of(_KL_LOSS_TYPES),
        "rollout_is_threshold": _OPTIONAL_POSITIVE,
        "teacher_regularization": _one_of(_TEACHER_REGULARIZATIONS),
        "teacher_update_rate": _SHARE,
        "success_reward_threshold": Rule(_number(lambda v: True), "must be a finite number"),
        "dont_reprompt_on_self_success": _SWITCH,
        "remove_thinking_from_demonstration": _SWITCH,
        "include_environment_feedback": _SWITCH,
        "environment_feedback_only_without_solution": _SWITCH,
        "max_reprompt_len": Rule(_positive_integer, "must be an integer above 0"),
        "reprompt_truncation": _one_of(_TRUNCATIONS),
        "apply_chat_template_kwargs": Rule(
            lambda value: isinstance(value, Mapping),
            "must be a mapping",
        ),
        "enabled": _SWITCH,
        "hybrid_lambda": _SHARE,
        "teacher_mode": Rule(
            _optional(lambda value: value in _TEACHER_MODES),
            f"must be one of {', '.join(_TEACHER_MODES)}, or None",
        ),
        "lora_average": _one_of(_LORA_AVERAGES),
        "max_reprompt_length": Rule(
            _optional(_positive_integer),
            "must be an integer above 0 (the same setting as max_reprompt_len)",
        ),
        "micro_batch_semantics": _one_of(_MICRO_BATCH_SEMANTICS),
        "loss_implementation": _one_of(_LOSS_IMPLEMENTATIONS),
        "share_prompts": _one_of(_SHARE_PROMPTS),
        "feedback_column": Rule(
            lambda v: isinstance(v, str) and bool(v), "must be a column's name"
        ),
        "audit_every": Rule(
            lambda v: _is_integer(v) and v >= 0,
            "must be 0 (off) or the number of updates between checks",
        ),
        "audit_lockstep": _SWITCH,
        "audit_dir": Rule(
            _optional(lambda v: isinstance(v, str)), "must be a path as text, or None"
        ),
        "lr": _POSITIVE,
        "grad_clip": _POSITIVE,
    }
)
