"""Settings that contradict each other or cannot be followed are refused."""

from types import SimpleNamespace

import pytest

from sdpo.settings.config import ConfigError, SDPOConfig
from sdpo.trainer.checks import (
    check_grpo_loss,
    check_sharding,
    effective_config,
    sharding_asked_for,
)
from sdpo.update.schedule import Schedule

ARGS = SimpleNamespace(temperature=0.7, max_grad_norm=1.0)
ON_POLICY, OFF_POLICY = Schedule(2, 2), Schedule(1, 2)


def test_trls_temperature_rules_and_another_one_is_refused():
    assert effective_config(SDPOConfig(), ARGS, ON_POLICY).temperature == 0.7
    assert effective_config(SDPOConfig(temperature=0.7), ARGS, ON_POLICY).temperature == 0.7
    with pytest.raises(ConfigError, match=r"temperature=0.5 contradicts GRPOConfig.temperature"):
        effective_config(SDPOConfig(temperature=0.5), ARGS, ON_POLICY)


@pytest.mark.parametrize(
    ("cap", "schedule", "expected"),
    [(2.0, ON_POLICY, None), (0.5, ON_POLICY, 0.5), (2.0, OFF_POLICY, 2.0)],
)
def test_a_cap_of_one_or_more_is_left_out_where_the_ratio_is_one(cap, schedule, expected):
    assert effective_config(SDPOConfig(is_clip=cap), ARGS, schedule).is_clip == expected


def test_sharding_is_known_from_the_launcher_and_refused(monkeypatch):
    plain = SimpleNamespace(fsdp=None, deepspeed=None)
    assert sharding_asked_for(plain) == {"fsdp": False, "deepspeed": False}
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert sharding_asked_for(plain) == {"fsdp": True, "deepspeed": False}
    check_sharding(fsdp=False, deepspeed=False)
    with pytest.raises(ConfigError, match="FSDP shards the student"):
        check_sharding(fsdp=True, deepspeed=False)


def test_a_hybrid_run_needs_the_loss_that_it_mixes_in():
    class Whole:
        def compute_loss(self, model):
            return self._compute_loss(model)

        def _compute_loss(self, model):
            return 0

    class Replaced(Whole):
        def compute_loss(self, model):
            return 0

    hybrid = SDPOConfig(hybrid_lambda=0.5)
    check_grpo_loss(Whole, hybrid)
    check_grpo_loss(Replaced, SDPOConfig())
    with pytest.raises(ConfigError, match="mixes TRL's GRPO loss in, but Replaced"):
        check_grpo_loss(Replaced, hybrid)
