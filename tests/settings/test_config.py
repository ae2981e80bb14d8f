"""Settings: presets, rules, one error for all violations."""

import copy
import dataclasses
import pickle

import pytest

from sdpo.fixtures import packaged_family
from sdpo.parity.compare.statuses import Status
from sdpo.parity.recorded.settings import reference_settings, run_config_family
from sdpo.settings.config import PRESETS, ConfigError, SDPOConfig

REPROMPT = packaged_family("reprompt")


def test_default_is_what_the_reference_runs():
    assert SDPOConfig() == SDPOConfig.preset("verl_yaml")
    for name, value in reference_settings()["sdpo_yaml"].items():
        assert getattr(SDPOConfig(), name) == value, name
    for name, value in REPROMPT.manifest["defaults_yaml"].items():
        assert getattr(SDPOConfig(), name) == value, name


def test_dataclass_preset_is_the_recorded_one():
    for name, value in REPROMPT.manifest["defaults_dataclass"].items():
        assert getattr(SDPOConfig.preset("verl_dataclass"), name) == value, name


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        (
            "paper_generalization",
            {
                "alpha": 0.5,
                "distillation_topk": 100,
                "teacher_update_rate": 0.05,
                "is_clip": 2.0,
            },
        ),
        (
            "paper_rich_feedback",
            {"alpha": 1.0, "distillation_topk": 20, "lr": 1e-6, "teacher_update_rate": 0.01},
        ),
        ("sdpo_rl", {"alpha": 0.5, "success_reward_threshold": 1.0}),
    ],
)
def test_presets(preset, expected):
    config = SDPOConfig.preset(preset)
    assert {name: getattr(config, name) for name in expected} == expected


def test_every_preset_is_valid():
    for name in PRESETS:
        assert isinstance(SDPOConfig.preset(name), SDPOConfig)


def test_all_violations_come_in_one_error():
    with pytest.raises(ConfigError) as caught:
        SDPOConfig(alpha=1.5, is_clip=0.0, loss_agg_mode="mean", teacher_update_rate=-1)
    for words in ("alpha=1.5", "[0, 1]", "is_clip=0.0", "loss_agg_mode='mean'", "token-mean"):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("distilation_topk", "distillation_topk"),
        ("ema_update_rate", "teacher_update_rate"),
        ("success_threshold", "success_reward_threshold"),
    ],
)
def test_unknown_setting_offers_the_nearest(key, nearest):
    for build in (lambda **s: SDPOConfig(**s), lambda **s: SDPOConfig.from_dict(s)):
        with pytest.raises(ConfigError, match=f"did you mean '{nearest}'"):
            build(**{key: 1})


def test_unknown_setting_and_broken_rule_come_together():
    with pytest.raises(ConfigError, match="alpha=7") as caught:
        SDPOConfig.from_dict({"alpha": 7, "nonsense": 1})
    assert "'nonsense' is not a setting" in str(caught.value)


def test_unknown_preset_offers_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'verl_yaml'"):
        SDPOConfig.preset("verl_yml")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"alpha": float("nan")}, "alpha"),
        ({"alpha": "0.5"}, "alpha"),
        ({"alpha": True}, "alpha"),
        ({"distillation_topk": 0}, "distillation_topk"),
        ({"distillation_topk": 2.5}, "distillation_topk"),
        ({"temperature": 0}, "temperature"),
        ({"teacher_regularization": "none"}, "ema"),
        ({"reprompt_truncation": "middle"}, "reprompt_truncation"),
        ({"max_reprompt_len": 0}, "max_reprompt_len"),
        ({"full_logit_distillation": False}, "alpha=0.5"),
        ({"solution_template": "{answer}"}, "successful_previous_attempt"),
        ({"distillation_add_tail": 1}, "distillation_add_tail"),
    ],
)
def test_rules(settings, words):
    with pytest.raises(ConfigError, match=words):
        SDPOConfig(**settings)


def test_configuration_is_a_value():
    config = SDPOConfig(alpha=1.0)
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config
    assert dataclasses.replace(config, alpha=0.0).alpha == 0.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.alpha = 0.0  # type: ignore[misc]


def test_config_stage_finds_a_drifted_default(monkeypatch):
    """M28: success threshold 1.0 in place of 0.5."""
    assert all(result.status == Status.MATCH for result in run_config_family(REPROMPT))
    drifted = {**PRESETS, "verl_yaml": {"success_reward_threshold": 1.0}}
    monkeypatch.setattr("sdpo.settings.config.PRESETS", drifted)
    statuses = {result.id: result.status for result in run_config_family(REPROMPT)}
    assert statuses["defaults_yaml"] == Status.DIVERGENT
    assert statuses["SDPOConfig()"] == Status.DIVERGENT
