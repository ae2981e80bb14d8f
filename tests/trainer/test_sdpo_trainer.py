"""Plain GRPO, hybrid, micro-batch semantics, and when the teacher follows."""

from typing import Any, NamedTuple

import pytest
import torch
from trl import GRPOTrainer  # pyright: ignore[reportPrivateImportUsage]

import sdpo.trainer.sdpo_trainer
from sdpo.parity.cases.tensor_distances import distance
from sdpo.settings.config import ConfigError, SDPOConfig
from sdpo.trainer.checks import check_sharding
from sdpo.trainer.sdpo_trainer import SDPOTrainer
from sdpo.update.observer import UpdateObserver
from tests.helpers.measured import alike, rounding_of
from tests.helpers.spread import slow_are
from tests.helpers.trainers import tiny_trainer
from tests.helpers.trainers.tiny_variants import OneSuccess

pytestmark = pytest.mark.usefixtures("packages_are_looked_up_once")

SMALL: dict[str, Any] = {"distillation_topk": 20}


class Gradients(UpdateObserver):
    """Keeps the gradients of each optimizer step, before clipping."""

    def __init__(self):
        self.steps: list[dict[str, torch.Tensor]] = []
        self.scales: list[float] = []

    def on_micro_batch_end(self, batch, values, scale):
        self.scales.append(float(scale))

    def on_gradients(self, model):
        named = model.named_parameters()
        self.steps.append({n: p.grad.clone() for n, p in named if p.grad is not None})


class Step(NamedTuple):
    """A gradient before clipping, and what rounding makes of it, relative to its norm."""

    gradient: dict[str, torch.Tensor]
    rounding: float


def first_gradient(folder, config, **changes):
    trainer = tiny_trainer.trainer(
        folder,
        config,
        model=tiny_trainer.model(initializer_range=tiny_trainer.WIDE),
        args={"max_steps": 1, **changes.pop("args", {})},
        **changes,
    )
    recorder = Gradients()
    trainer.observers.append(recorder)
    gaps = tiny_trainer.gaps_of(trainer)
    trainer.train()
    return Step(recorder.steps[0], rounding_of(gaps))


def mixed(one, other, share):
    return {name: share * one[name] + (1 - share) * other[name] for name in one}


def test_switched_off_it_is_grpo_bit_for_bit(tmp_path):
    args = {"max_steps": 3, "num_iterations": 2}
    plain = tiny_trainer.trainer(tmp_path, kind=GRPOTrainer, args=args)
    before = tiny_trainer.weights(plain.model)
    plain.train()
    ours = tiny_trainer.trainer(tmp_path, SDPOConfig(enabled=False), args=args)
    ours.train()
    assert tiny_trainer.same(tiny_trainer.weights(plain.model), tiny_trainer.weights(ours.model))
    assert not tiny_trainer.same(tiny_trainer.weights(plain.model), before)
    for one, other in zip(plain.state.log_history, ours.state.log_history, strict=True):
        timed = {"step_time", "train_runtime"}
        assert one.keys() == other.keys()
        assert all(
            one[k] == other[k] for k in one if k not in timed and not k.endswith("per_second")
        )


def test_hybrid_is_the_weighted_sum_of_both_gradients(tmp_path):
    grpo = first_gradient(tmp_path, SDPOConfig(hybrid_lambda=1.0, **SMALL))
    pure = first_gradient(tmp_path, SDPOConfig(**SMALL))
    both = first_gradient(tmp_path, SDPOConfig(hybrid_lambda=0.3, **SMALL))
    assert alike(both.gradient, mixed(grpo.gradient, pure.gradient, 0.3), pure.rounding)
    assert distance(both.gradient, mixed(grpo.gradient, pure.gradient, 0.7)) > 0.1


def test_a_parent_with_a_loss_of_its_own_does_not_replace_ours(tmp_path, monkeypatch):
    """Unsloth's patch gives `trl.GRPOTrainer` a `compute_loss` that never asks `_compute_loss`."""
    expected = first_gradient(tmp_path, SDPOConfig(**SMALL))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        raise AssertionError("this would be GRPO")

    monkeypatch.setattr(GRPOTrainer, "compute_loss", compute_loss)
    found = first_gradient(tmp_path, SDPOConfig(**SMALL))
    assert tiny_trainer.same(found.gradient, expected.gradient)
    with pytest.raises(ConfigError, match="importing unsloth replaces it"):
        tiny_trainer.trainer(tmp_path, SDPOConfig(hybrid_lambda=0.3, **SMALL))


def test_hybrid_at_one_has_the_gradient_of_grpo(tmp_path):
    model = tiny_trainer.model(initializer_range=tiny_trainer.WIDE)
    plain = tiny_trainer.trainer(
        tmp_path, SDPOConfig(enabled=False), model=model, args={"max_steps": 1}
    )
    recorder = Gradients()
    plain.observers.append(recorder)
    plain.train()
    grpo = first_gradient(tmp_path, SDPOConfig(hybrid_lambda=1.0, **SMALL))
    # Not bitwise: rows keep the order of generation, which TRL shuffles.
    assert alike(grpo.gradient, recorder.steps[0], grpo.rounding)


MODES = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum")


@pytest.mark.parametrize("mode", slow_are(("seq-mean-token-sum",), MODES))
def test_exact_semantics_do_not_depend_on_the_split(mode, tmp_path):
    splits = [(8, 1), (4, 2), (2, 4)]
    settings: dict[str, Any] = {"loss_agg_mode": mode, **SMALL}
    found = {}
    for semantics in ("exact", "verl"):
        config = SDPOConfig(micro_batch_semantics=semantics, **settings)
        for size, steps in splits:
            found[semantics, size] = uneven_gradient(tmp_path, config, size, steps)
    whole = found["exact", 8]
    for split in (("exact", 4), ("exact", 2), ("verl", 8)):
        assert alike(found[split].gradient, whole.gradient, whole.rounding)
    assert distance(found["verl", 2].gradient, found["verl", 8].gradient) > 1e-2


def uneven_gradient(folder, config, size, steps):
    args = {
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": steps,
        "num_generations": 8,
    }
    return first_gradient(folder, config, args=args, reward_funcs=[OneSuccess()])


@pytest.mark.parametrize(
    ("steps_per_generation", "num_iterations", "steps", "expected"),
    [
        (2, 1, 3, 3),
        (4, 2, 8, 2),
        (1, 2, 3, 3),
        pytest.param(4, 1, 4, 2, marks=pytest.mark.slow),
        pytest.param(2, 3, 6, 2, marks=pytest.mark.slow),
        pytest.param(1, 1, 3, 3, marks=pytest.mark.slow),
    ],
)
def test_the_teacher_follows_once_per_update(
    steps_per_generation, num_iterations, steps, expected, tmp_path
):
    args = {
        "steps_per_generation": steps_per_generation,
        "num_iterations": num_iterations,
        "max_steps": steps,
        "num_generations": 2,
    }
    trainer = tiny_trainer.trainer(tmp_path, SDPOConfig(**SMALL), args=args)
    moves = []
    update = trainer.teacher.update
    trainer.teacher.update = lambda *a, **k: (
        moves.append(trainer.state.global_step),
        update(*a, **k),
    )
    trainer.train()
    assert len(moves) == expected


def test_off_policy_rollouts_get_old_log_probs_and_on_policy_ones_do_not(tmp_path):
    for steps, expected in ((2, False), (4, True)):
        trainer = tiny_trainer.trainer(
            tmp_path, SDPOConfig(**SMALL), args={"steps_per_generation": steps, "max_steps": 1}
        )
        trainer.train()
        assert all(("old_log_probs" in part) == expected for part in trainer._buffered_inputs)


def test_on_policy_a_cap_below_one_still_acts(tmp_path):
    whole = first_gradient(tmp_path, SDPOConfig(**SMALL))
    capped = first_gradient(tmp_path, SDPOConfig(is_clip=0.5, **SMALL))
    half = {name: 0.5 * g for name, g in whole.gradient.items()}
    assert distance(capped.gradient, half) < 1e-6


@pytest.mark.parametrize(
    ("config", "args", "message"),
    [
        ({}, {"gradient_accumulation_steps": 4, "steps_per_generation": 6}, "neither divides"),
        (
            {"micro_batch_semantics": "exact"},
            {"gradient_accumulation_steps": 4, "steps_per_generation": 2},
            "known in advance",
        ),
        ({"temperature": 0.7}, {}, "GRPOConfig.temperature=1.0"),
        ({"grad_clip": 0.5}, {}, "GRPOConfig.max_grad_norm=1.0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(config, args, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        tiny_trainer.trainer(tmp_path, SDPOConfig(**config), args=args)


@pytest.mark.parametrize("kind", ["fsdp", "deepspeed"])
def test_sharded_students_are_refused(kind):
    with pytest.raises(ConfigError, match="shards the student"):
        check_sharding(**{"fsdp": False, "deepspeed": False, kind: True})


def test_the_trainer_asks_whether_its_student_is_sharded(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(sdpo.trainer.sdpo_trainer, "check_sharding", lambda **on: asked.append(on))
    tiny_trainer.trainer(tmp_path, SDPOConfig())
    # Once by what is asked for, before anything is loaded, and once by what accelerate made of it.
    assert asked == [{"fsdp": False, "deepspeed": False}] * 2


def test_temperature_is_taken_from_the_sampling_temperature(tmp_path):
    trainer = tiny_trainer.trainer(tmp_path, SDPOConfig(), args={"temperature": 0.7})
    assert trainer.loss_config.temperature == 0.7
    assert isinstance(trainer, SDPOTrainer)
