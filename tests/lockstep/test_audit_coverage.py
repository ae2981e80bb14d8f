"""Runs that the reference cannot make in the same way are refused before they begin."""

import pytest

from sdpo.settings.config import ConfigError
from tests.helpers.trainers import tiny_trainer
from tests.helpers.trainers.tiny_variants import audited

pytestmark = pytest.mark.usefixtures("packages_are_looked_up_once")


@pytest.mark.parametrize(
    ("settings", "args", "reason"),
    [
        ({"reprompt_truncation": "error"}, {}, "always fails"),
        ({}, {"fp16": True}, "loss scaling"),
        ({}, {"per_device_train_batch_size": 4, "steps_per_generation": 1}, "never makes"),
        ({"loss_implementation": "fused"}, {"bf16": True}, "bf16 with loss_implementation"),
        ({"share_prompts": "teacher"}, {"bf16": True}, "bf16 with share_prompts"),
        ({"teacher_mode": "trust_region"}, {"model": 0.1}, "draws in another order"),
        ({"micro_batch_semantics": "exact"}, {"model": 0.1}, "other masks"),
        ({"micro_batch_semantics": "exact"}, {"bf16": True}, "rounds otherwise"),
    ],
)
def test_what_is_not_covered_is_refused(settings, args, reason, tmp_path):
    model = tiny_trainer.model(attention_dropout=args.get("model", 0.0))
    args = {name: value for name, value in args.items() if name != "model"}
    with pytest.raises(ConfigError, match=reason):
        audited(tmp_path, args=args, model=model, **settings)
