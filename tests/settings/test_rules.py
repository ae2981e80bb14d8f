"""Settings of sdpo-rl are accepted under their names; two names of a thing may not disagree."""

from dataclasses import replace
from typing import Any

import pytest

from sdpo.settings.config import ConfigError, SDPOConfig

PEER_SETTINGS: dict[str, Any] = {
    "enabled": True,
    "alpha": 0.5,
    "full_logit_distillation": True,
    "distillation_topk": 100,
    "distillation_add_tail": True,
    "is_clip": 2.0,
    "teacher_mode": "ema",
    "teacher_update_rate": 0.05,
    "apply_chat_template_kwargs": {},
    "success_reward_threshold": 1.0,
    "dont_reprompt_on_self_success": True,
    "remove_thinking_from_demonstration": True,
    "include_environment_feedback": True,
    "environment_feedback_only_without_solution": True,
    "max_reprompt_length": 10240,
    "reprompt_truncation": "right",
    "reprompt_template": "{prompt}{solution}{feedback}\n\nCorrectly solve the original question.\n",
    "solution_template": "\nCorrect solution:\n\n{successful_previous_attempt}\n\n",
    "feedback_template": "\nFeedback:\n\n{feedback_raw}\n\n",
}
"""All settings that sdpo-rl 0.0.3 documents, at its documented values."""


def test_all_settings_of_the_peer_are_accepted():
    config = SDPOConfig(**PEER_SETTINGS)
    assert config.max_reprompt_len == 10240
    assert config.teacher_regularization == "ema"


def test_the_defaults_are_still_the_yaml_layer():
    assert SDPOConfig() == SDPOConfig.preset("verl_yaml")
    assert SDPOConfig().enabled
    assert SDPOConfig().hybrid_lambda == 0


@pytest.mark.parametrize(
    ("mode", "regularization", "rate"),
    [
        ("ema", "ema", 0.05),
        ("frozen", "ema", 0.0),
        ("trust_region", "trust-region", 0.05),
        ("lora_ema", "ema", 0.05),
    ],
)
def test_a_teacher_mode_sets_the_settings_of_the_reference(mode, regularization, rate):
    config = SDPOConfig(teacher_mode=mode)
    assert config.teacher_regularization == regularization
    assert config.teacher_update_rate == rate
    assert replace(config, alpha=1.0).teacher_mode == mode


def test_the_alias_of_the_length_is_the_length_also_when_replaced():
    config = SDPOConfig(max_reprompt_length=512)
    assert config.max_reprompt_len == 512
    assert replace(config, max_reprompt_len=64).max_reprompt_len == 64
    assert config == SDPOConfig(max_reprompt_len=512)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher_mode": "ema", "teacher_regularization": "trust-region"}, "contradicts"),
        ({"teacher_mode": "frozen", "teacher_update_rate": 0.1}, "does not move"),
        ({"max_reprompt_len": 5, "max_reprompt_length": 6}, "same setting"),
        ({"max_reprompt_length": 0}, "max_reprompt_length=0"),
        ({"teacher_mode": "lora"}, "teacher_mode='lora'"),
        ({"hybrid_lambda": 1.5}, "hybrid_lambda=1.5"),
        ({"micro_batch_semantics": "mean"}, "verl, exact"),
        ({"loss_implementation": "chunked"}, "logits, fused"),
        ({"share_prompts": "all"}, "none, teacher, both"),
        ({"lora_average": "effective"}, "needs teacher_mode='lora_ema'"),
        ({"entropy_coeff": -0.1}, "entropy_coeff=-0.1: must be a finite number, 0 or above"),
        ({"use_kl_loss": 1}, "use_kl_loss=1: must be True or False"),
        ({"kl_loss_type": "abs"}, "kl_loss_type='abs': must be one of low_var_kl"),
        ({"kl_loss_coef": 0.1}, "kl_loss_coef=0.1 needs use_kl_loss=True"),
        ({"entropy_coeff": 0.1, "loss_implementation": "fused"}, "never holds the logits"),
        ({"use_kl_loss": True, "micro_batch_semantics": "exact"}, "use 'verl'"),
        ({"audit_every": -1}, "audit_every=-1"),
        ({"audit_every": True}, "audit_every=True"),
        ({"enabled": 1}, "enabled=1"),
        ({"feedback_column": ""}, "feedback_column=''"),
        ({"max_reprompt_lenght": 5}, "did you mean 'max_reprompt_length'"),
    ],
)
def test_wrong_or_contradicting_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        SDPOConfig(**settings)
