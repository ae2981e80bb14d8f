"""Settings of SDPO under verl's names, their rules, and named presets.

`SDPOConfig()` is what the reference really runs: its YAML layer. The layers of the reference, the
paper's two set-ups and the `sdpo-rl` package disagree; each is a preset.
"""

from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field, fields
from types import MappingProxyType
from typing import Any

from sdpo.settings.rules import DEFAULT_RATE, RawSettings, nearest, violations
from sdpo.settings.stage_settings import (
    FEEDBACK_TEMPLATE,
    REPROMPT_TEMPLATE,
    SOLUTION_TEMPLATE,
    LossSettings,
    PolicySettings,
    PromptSettings,
)

_DATACLASS_TEMPLATES = {
    "reprompt_template": REPROMPT_TEMPLATE + "\n",
    "solution_template": SOLUTION_TEMPLATE + "\n\n",
    "feedback_template": FEEDBACK_TEMPLATE + "\n\n",
}


class ConfigError(ValueError):
    """One or more settings break a rule; the message lists all of them."""


@dataclass(frozen=True, kw_only=True)
class SDPOConfig(PolicySettings, PromptSettings, LossSettings):
    """Settings of loss and policy terms, the teacher prompt, the teacher and its training.

    Field names are verl's; the settings of `sdpo-rl` are accepted under its names too, as long as
    two names of one thing do not disagree.

    Raises:
        ConfigError: any field breaks its rule; all violations are listed.

    Source: `verl/workers/config/actor.py` 38-112, `verl/trainer/config/actor/actor.yaml` and
    `verl/trainer/config/sdpo.yaml` at 0e6d5106.
    """

    enabled: bool = True
    """False leaves the trainer exactly TRL's GRPO."""
    hybrid_lambda: float = 0.0
    """Weight of GRPO in the loss `hybrid_lambda * GRPO + (1 - hybrid_lambda) * SDPO`."""
    micro_batch_semantics: str = "verl"
    """`verl`: mean of the micro-batches' own means; `exact`: independent of the split."""
    loss_implementation: str = "logits"
    """How the trainer computes the loss: from all `logits`, or `fused`, from hidden states in
    chunks: the same but for rounding, without the memory of the logits."""
    share_prompts: str = "none"
    """Who computes a prompt once for all rows of a micro-batch that have it, the same but for
    rounding: `none`, the `teacher`, or `both` it and the student."""

    rollout_is_threshold: float | None = 2.0
    """Upper limit of the rollout-correction weights (used where the sampler's log-probs exist)."""

    teacher_regularization: str = "ema"
    """`ema`: moving average of weights; `trust-region`: mix of logits with the live student."""
    teacher_update_rate: float = DEFAULT_RATE
    """Share of the student in the average or mix; 0 freezes the teacher."""

    teacher_mode: str | None = None
    """sdpo-rl's name for the two above: `ema`, `frozen` (rate 0), `trust_region`, or `lora_ema`
    (student and teacher are adapters of one PEFT model). None: as the two above say."""
    lora_average: str = "factors"
    """What `lora_ema` averages: the `factors` A and B, or the `effective` weights B·A, which needs
    one dense matrix for each adapted layer."""

    max_reprompt_length: InitVar[int | None] = None
    """sdpo-rl's name of `max_reprompt_len`, which is the one to read."""
    apply_chat_template_kwargs: Mapping[str, object] = field(default_factory=dict)
    """Chat-template arguments of the teacher prompt."""
    feedback_column: str = "feedback"
    """Column of the rollouts that may hold the environment's feedback."""

    audit_every: int = 0
    """Compare every n-th update with the reference while training; 0 for never."""
    audit_lockstep: bool = False
    """Also train a second replica by the reference alone, from the same rollouts."""
    audit_dir: str | None = None
    """Where the audit writes; None for `parity` in the trainer's output directory."""

    lr: float = 1e-5  # - / 1e-6 / 1e-5
    """Learning rate that belongs to the preset."""
    grad_clip: float = 1.0
    """Largest 2-norm of the gradient."""

    def __new__(cls, **settings: Any) -> "SDPOConfig":
        """Reject unknown settings, naming the nearest valid one."""
        known = [*(f.name for f in fields(cls)), "max_reprompt_length"]
        unknown = [key for key in settings if key not in known]
        if unknown:
            messages = [f"{key!r} is not a setting{nearest(key, known)}" for key in unknown]
            valid = {key: value for key, value in settings.items() if key in known}
            raise ConfigError("; ".join(messages + violations(valid)))
        return super().__new__(cls)

    def __post_init__(self, max_reprompt_length: int | None) -> None:
        settings = {f.name: getattr(self, f.name) for f in fields(self)}
        if broken := violations(settings | {"max_reprompt_length": max_reprompt_length}):
            raise ConfigError("; ".join(broken))
        implied: dict[str, object] = {
            "max_reprompt_len": max_reprompt_length or self.max_reprompt_len
        }
        if self.teacher_mode == "trust_region":
            implied["teacher_regularization"] = "trust-region"
        if self.teacher_mode == "frozen":
            implied["teacher_update_rate"] = 0.0
        for name, value in implied.items():
            object.__setattr__(self, name, value)

    def shares_prompts(self, side: str) -> bool:
        """Whether the `student` or `teacher` computes a prompt once for several rows."""
        return self.share_prompts in (side, "both")

    @classmethod
    def from_dict(cls, settings: RawSettings, *, preset: str = "verl_yaml") -> "SDPOConfig":
        """A preset with some settings changed.

        Raises:
            ConfigError: unknown preset or setting (the nearest valid name is offered), or a broken
                rule; all of them in one message.
        """
        if preset not in PRESETS:
            raise ConfigError(f"{preset!r} is not a preset{nearest(preset, list(PRESETS))}")
        chosen: dict[str, Any] = {**PRESETS[preset], **settings}
        return cls(**chosen)

    @classmethod
    def preset(cls, name: str) -> "SDPOConfig":
        """One of the named presets.

        Raises:
            ConfigError: no such preset; the nearest name is offered.
        """
        return cls.from_dict({}, preset=name)


PRESETS: Mapping[str, RawSettings] = MappingProxyType(
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
            **_DATACLASS_TEMPLATES,
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
        "sdpo_rl": {"success_reward_threshold": 1.0, **_DATACLASS_TEMPLATES},
    }
)
"""Differences from `verl_yaml`. Sources: the reference's dataclass; its generalization script; its
rich-feedback script (whose `ema_update_rate=0.01` names no existing key, so that the script as
published cannot start); `sdpo-rl` 0.0.3 `SDPOConfig`."""
