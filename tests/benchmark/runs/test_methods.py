"""Each method gets its trainer, and fields that it does not have are named."""

from contextlib import nullcontext
from typing import Any

import pytest
from datasets import Dataset
from msgspec.structs import replace

from sdpo.benchmark.runs.methods import TrainerParts, build_trainer
from sdpo.benchmark.runs.models import load_model, load_tokenizer
from sdpo.benchmark.runs.settings import SettingsError, load
from sdpo.trainer.sdpo_trainer import SDPOTrainer

NOTHING: Any = {}


def parts_of(name: str) -> TrainerParts:
    settings = load("sdpo", ["model.name=" + name])
    return TrainerParts(
        model=load_model(settings.model),
        processing_class=load_tokenizer(name),
        train_dataset=Dataset.from_list([{"prompt": "a"}] * 64),
        reward_funcs=[len],  # pyright: ignore[reportArgumentType]
        peft_config=None,
        callbacks=[],
    )


@pytest.mark.parametrize(
    ("config", "wrong", "meant"),
    [("sdpo", "train.learning_rte", "learning_rate"), ("grpo", "train.bta", "beta")],
)
def test_a_misspelt_field_is_named_with_the_right_one(config, wrong, meant, tmp_path):
    settings = load(config, [f"{wrong}=1.0"])
    with pytest.raises(
        SettingsError, match=f"is not a field of GRPOConfig; did you mean '{meant}'"
    ):
        build_trainer(settings, tmp_path, NOTHING)


@pytest.mark.parametrize(
    ("name", "said"),
    [("alfa", "'alfa' is not a setting; did you mean 'alpha'"), ("max_reprompt_length", None)],
)
def test_names_of_our_own_settings_are_those_of_the_trainer(name, said, tmp_path):
    """Also the name that sdpo-rl has for one of them."""
    settings = load("sdpo", [f"sdpo.{name}=512"])
    with pytest.raises(SettingsError, match=said) if said else nullcontext():
        trainer = build_trainer(settings, tmp_path, parts_of("embedded"))
        assert isinstance(trainer, SDPOTrainer)
        assert trainer.sdpo_config.max_reprompt_len == 512


@pytest.mark.parametrize(
    ("method", "fields", "said"),
    [
        ("grpo", {"alpha": 0.5}, "method grpo has no teacher"),
        ("hybrid", {"alpha": 0.5}, "method hybrid needs sdpo.hybrid_lambda"),
    ],
)
def test_a_section_that_does_not_fit_the_method_is_refused(method, fields, said, tmp_path):
    settings = replace(load("sdpo"), method=method, sdpo=fields)
    with pytest.raises(SettingsError, match=said):
        build_trainer(settings, tmp_path, NOTHING)


def test_plain_grpo_is_the_same_trainer_without_a_teacher(tmp_path):
    trainer = build_trainer(load("grpo"), tmp_path, parts_of("embedded"))
    assert isinstance(trainer, SDPOTrainer)
    assert not trainer.sdpo_config.enabled
    assert trainer.args.output_dir == str(tmp_path / "checkpoints")
    assert trainer.args.save_steps == load("grpo").records.checkpoint_every
