"""A resumed run is bit-identical to an uninterrupted one: weights, teacher, optimizer."""

import pytest

from sdpo.settings.config import SDPOConfig
from sdpo.trainer.checkpoint import TEACHER_FILE
from tests.helpers.trainers import tiny_trainer
from tests.helpers.trainers.tiny_variants import lora

pytestmark = pytest.mark.usefixtures("packages_are_looked_up_once")


@pytest.mark.parametrize(
    ("args", "settings"),
    [
        ({}, {}),
        ({"steps_per_generation": 4, "num_iterations": 2}, {"alpha": 1.0}),
        pytest.param({}, {"teacher_mode": "trust_region"}, marks=pytest.mark.slow),
        ({}, {"teacher_mode": "lora_ema"}),
        ({}, {"teacher_mode": "lora_ema", "lora_average": "effective"}),
        ({}, {"use_kl_loss": True, "kl_loss_coef": 0.5, "entropy_coeff": 0.1}),
        ({}, {"use_kl_loss": True, "kl_loss_coef": 0.5, "teacher_mode": "lora_ema"}),
    ],
    ids=[
        "between updates",
        "within an update",
        "trust region",
        "lora_ema",
        "effective",
        "policy terms",
        "policy terms with LoRA",
    ],
)
def test_resumed_is_uninterrupted(args, settings, tmp_path):
    config = SDPOConfig(distillation_topk=20, **settings)
    build = lora if "lora_ema" in settings.values() else tiny_trainer.model
    args = {"max_steps": 5, "save_strategy": "steps", "save_steps": 3, **args}
    whole = tiny_trainer.trainer(tmp_path, config, model=build(), args=args)
    whole.train()
    resumed = tiny_trainer.trainer(tmp_path, config, model=build(), args=args)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert tiny_trainer.same(tiny_trainer.weights(whole.model), tiny_trainer.weights(resumed.model))
    assert tiny_trainer.same(whole.teacher.state_dict(), resumed.teacher.state_dict())
    logs = [[row["loss"] for row in t.state.log_history if "loss" in row] for t in (whole, resumed)]
    assert logs[0] == logs[1]
    assert len(logs[0]) == 5


def test_an_anchor_of_other_weights_than_training_began_with_is_refused(tmp_path):
    args = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    config = SDPOConfig(distillation_topk=20, use_kl_loss=True)
    first = tiny_trainer.trainer(tmp_path, config, args=args)
    first.train()
    resumed = tiny_trainer.trainer(tmp_path, config, model=first.model, args=args)
    with pytest.raises(ValueError, match="resume with the model that training began with"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


@pytest.mark.parametrize("settings", [{}, {"enabled": False}], ids=["sdpo", "grpo"])
def test_resumed_at_its_end_makes_no_further_step(settings, tmp_path):
    """Transformers 5.24 alone would train one step more: the loop asks only after a step."""
    args = {"max_steps": 3, "save_strategy": "steps", "save_steps": 3}
    config = SDPOConfig(distillation_topk=20, **settings)
    whole = tiny_trainer.trainer(tmp_path, config, args=args)
    whole.train()
    resumed = tiny_trainer.trainer(tmp_path, config, args=args)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.state.global_step == 3
    assert tiny_trainer.same(tiny_trainer.weights(whole.model), tiny_trainer.weights(resumed.model))
    if config.enabled:
        assert tiny_trainer.same(whole.teacher.state_dict(), resumed.teacher.state_dict())


def test_without_its_teacher_a_resumed_run_would_differ(tmp_path):
    args = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    config = SDPOConfig(distillation_topk=20, teacher_update_rate=0.5)
    whole = tiny_trainer.trainer(tmp_path, config, args=args)
    whole.train()
    checkpoint = tmp_path / "checkpoint-2"
    resumed = tiny_trainer.trainer(tmp_path, config, args=args)
    resumed.teacher.load_state_dict = lambda state: None
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert not tiny_trainer.same(
        tiny_trainer.weights(whole.model), tiny_trainer.weights(resumed.model)
    )
    (checkpoint / TEACHER_FILE).unlink()
    with pytest.raises(FileNotFoundError, match="was not written by SDPOTrainer"):
        tiny_trainer.trainer(tmp_path, config, args=args).train(
            resume_from_checkpoint=str(checkpoint)
        )


def test_a_teacher_that_does_not_fit_is_refused(tmp_path):
    trainer = tiny_trainer.trainer(tmp_path, SDPOConfig())
    state = trainer.teacher.state_dict()
    state.pop("lm_head.weight")
    with pytest.raises(ValueError, match="lm_head"):
        trainer.teacher.load_state_dict(state)
