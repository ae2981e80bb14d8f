"""Settings of SDPO under verl's names, their rules, and named presets.

`SDPOConfig()` is what the reference really runs: its YAML layer. The layers of the reference, the
paper's two set-ups and the `sdpo-rl` package disagree; each is a preset.
"""

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

from sdpo.aggregate import LOSS_AGG_MODES
from sdpo.templates import SLOTS, TemplateError, check_template

TEACHER_REGULARIZATIONS = ("ema", "trust-region")
TRUNCATIONS = ("left", "right", "error")

REPROMPT_TEMPLATE = "{prompt}{solution}{feedback}\n\nCorrectly solve the original question."
SOLUTION_TEMPLATE = "\nCorrect solution:\n\n{successful_previous_attempt}"
FEEDBACK_TEMPLATE = (
    "\nThe following is feedback from your unsuccessful earlier attempt:\n\n{feedback_raw}"
)
DATACLASS_TEMPLATES = {
    "reprompt_template": REPROMPT_TEMPLATE + "\n",
    "solution_template": SOLUTION_TEMPLATE + "\n\n",
    "feedback_template": FEEDBACK_TEMPLATE + "\n\n",
}


class ConfigError(ValueError):
    """One or more settings break a rule; the message lists all of them."""


@dataclass(frozen=True, kw_only=True)
class SDPOConfig:
    """Settings of the loss, the teacher and its prompt.

    Field names are verl's; the comment behind a field gives its default in the reference's three
    layers where they disagree: dataclass / actor.yaml / sdpo.yaml.

    Raises:
        ConfigError: any field breaks its rule; all violations are listed.

    Source: `verl/workers/config/actor.py` 39-112, `verl/trainer/config/actor/actor.yaml` and
    `verl/trainer/config/sdpo.yaml` at 0e6d5106.
    """

    full_logit_distillation: bool = True
    """Compare distributions; False compares the sampled token alone (needs alpha 1)."""
    alpha: float = 0.5  # 0.0 / 0.5 / 0.5
    """0: KL(teacher‖student); 1: KL(student‖teacher); between: mixture form."""
    distillation_topk: int | None = 100  # None / 100 / 100
    """K likeliest tokens of the student; None takes the full vocabulary."""
    distillation_add_tail: bool = True
    """Keep the left-over mass as one more entry; False renormalises the K entries."""
    is_clip: float | None = 2.0  # None / 2 / 2
    """Upper limit of the importance ratio; None for no ratio."""
    loss_agg_mode: str = "token-mean"
    """How token losses become one number."""
    temperature: float = 1.0
    """Divides the logits of both sides; the sampling temperature of training."""
    rollout_is_threshold: float | None = 2.0
    """Upper limit of the rollout-correction weights (used where the sampler's log-probs exist)."""

    teacher_regularization: str = "ema"
    """`ema`: moving average of weights; `trust-region`: mix of logits with the live student."""
    teacher_update_rate: float = 0.05
    """Share of the student in the average or mix; 0 freezes the teacher."""

    success_reward_threshold: float = 0.5  # 1.0 / 0.5 / 0.5
    """Smallest summed reward of a successful attempt."""
    dont_reprompt_on_self_success: bool = True  # False / True / True
    """Never show an attempt to itself as a demonstration."""
    remove_thinking_from_demonstration: bool = True  # False / True / True
    """Delete `<think>…</think>` spans from demonstrations."""
    include_environment_feedback: bool = True  # False / True / True
    """Let feedback into the teacher prompt."""
    environment_feedback_only_without_solution: bool = True  # False / True / True
    """Use feedback only where there is no demonstration."""
    max_reprompt_len: int = 10240
    """Longest teacher prompt in tokens, chat template included."""
    reprompt_truncation: str = "right"
    """Which end of a longer prompt is cut, or `error`."""
    reprompt_template: str = REPROMPT_TEMPLATE
    """Slots `prompt`, `solution`, `feedback`."""
    solution_template: str = SOLUTION_TEMPLATE
    """Slot `successful_previous_attempt`."""
    feedback_template: str = FEEDBACK_TEMPLATE
    """Slot `feedback_raw`."""
    apply_chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Chat-template arguments of the teacher prompt."""

    lr: float = 1e-5  # - / 1e-6 / 1e-5
    """Learning rate that belongs to the preset."""
    grad_clip: float = 1.0
    """Largest 2-norm of the gradient."""

    def __new__(cls, **settings: Any) -> "SDPOConfig":
        """Reject unknown settings, naming the nearest valid one."""
        known = [f.name for f in fields(cls)]
        unknown = [key for key in settings if key not in known]
        if unknown:
            messages = [f"{key!r} is not a setting{_nearest(key, known)}" for key in unknown]
            valid = {key: value for key, value in settings.items() if key in known}
            raise ConfigError("; ".join(messages + _violations(valid)))
        return super().__new__(cls)

    def __post_init__(self) -> None:
        violations = _violations({f.name: getattr(self, f.name) for f in fields(self)})
        if violations:
            raise ConfigError("; ".join(violations))

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any], *, preset: str = "verl_yaml") -> "SDPOConfig":
        """A preset with some settings changed.

        Raises:
            ConfigError: unknown preset or setting (the nearest valid name is offered), or a broken
                rule; all of them in one message.
        """
        if preset not in PRESETS:
            raise ConfigError(f"{preset!r} is not a preset{_nearest(preset, list(PRESETS))}")
        return cls(**{**PRESETS[preset], **settings})

    @classmethod
    def preset(cls, name: str) -> "SDPOConfig":
        """One of the named presets.

        Raises:
            ConfigError: no such preset; the nearest name is offered.
        """
        return cls.from_dict({}, preset=name)


def _violations(settings: Mapping[str, Any]) -> list[str]:
    """One message for each setting that breaks its rule."""
    violations = [
        f"{name}={value!r}: {RULES[name][1]}"
        for name, value in settings.items()
        if name in RULES and not RULES[name][0](value)
    ]
    for name in SLOTS.keys() & settings.keys():
        try:
            check_template(name, settings[name])
        except TemplateError as error:
            violations.append(str(error))
    alpha = settings.get("alpha", SDPOConfig.alpha)
    if not settings.get("full_logit_distillation", True) and alpha != 1.0:
        violations.append(
            f"alpha={alpha!r}: must be 1.0 when full_logit_distillation is False, because "
            "the sampled token only estimates KL(student‖teacher)"
        )
    return violations


def _nearest(name: str, valid: list[str]) -> str:
    """A hint that names the valid name closest to a wrong one."""
    close = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.4)
    return f"; did you mean {close[0]!r}?" if close else f"; valid are {valid}"


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _number(holds: Callable[[float], bool]) -> Callable[[Any], bool]:
    return lambda value: _is_number(value) and holds(value)


def _optional(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or holds(value)


def _positive_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _one_of(choices: tuple[str, ...]) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value in choices, f"must be one of {', '.join(choices)}"


_SWITCH = (lambda value: isinstance(value, bool), "must be True or False")
_POSITIVE = (_number(lambda v: v > 0), "must be a finite number above 0")

RULES: Mapping[str, tuple[Callable[[Any], bool], str]] = MappingProxyType(
    {
        "full_logit_distillation": _SWITCH,
        "alpha": (_number(lambda v: 0 <= v <= 1), "must lie in [0, 1]"),
        "distillation_topk": (_optional(_positive_integer), "must be an integer above 0, or None"),
        "distillation_add_tail": _SWITCH,
        "is_clip": (_optional(_POSITIVE[0]), "must be a finite number above 0, or None"),
        "loss_agg_mode": _one_of(LOSS_AGG_MODES),
        "temperature": _POSITIVE,
        "rollout_is_threshold": (
            _optional(_POSITIVE[0]),
            "must be a finite number above 0, or None",
        ),
        "teacher_regularization": _one_of(TEACHER_REGULARIZATIONS),
        "teacher_update_rate": (_number(lambda v: 0 <= v <= 1), "must lie in [0, 1]"),
        "success_reward_threshold": (_number(lambda v: True), "must be a finite number"),
        "dont_reprompt_on_self_success": _SWITCH,
        "remove_thinking_from_demonstration": _SWITCH,
        "include_environment_feedback": _SWITCH,
        "environment_feedback_only_without_solution": _SWITCH,
        "max_reprompt_len": (_positive_integer, "must be an integer above 0"),
        "reprompt_truncation": _one_of(TRUNCATIONS),
        "apply_chat_template_kwargs": (
            lambda value: isinstance(value, Mapping),
            "must be a mapping",
        ),
        "lr": _POSITIVE,
        "grad_clip": _POSITIVE,
    }
)

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "verl_yaml": {},
        "verl_dataclass": {
            "alpha": 0.0,
            "distillation_topk": None,
            "is_clip": None,
            "success_reward_threshold": 1.0,
            "dont_reprompt_on_self_success": False,
            "remove_thinking_from_demonstration": False,
            "include_environment_feedback": False,
            "environment_feedback_only_without_solution": False,
            **DATACLASS_TEMPLATES,
        },
        "paper_generalization": {
            "alpha": 0.5,
            "distillation_topk": 100,
            "teacher_update_rate": 0.05,
            "is_clip": 2.0,
            "include_environment_feedback": False,
            "lr": 1e-5,
        },
        "paper_rich_feedback": {
            "alpha": 1.0,
            "distillation_topk": 20,
            "teacher_update_rate": 0.01,
            "lr": 1e-6,
        },
        "sdpo_rl": {"success_reward_threshold": 1.0, **DATACLASS_TEMPLATES},
    }
)
"""Differences from `verl_yaml`. Sources: the reference's dataclass; its generalization script; its
rich-feedback script (whose `ema_update_rate=0.01` names no existing key, so that the script as
published cannot start); `sdpo-rl` 0.0.3 `SDPOConfig`."""
