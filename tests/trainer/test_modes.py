"""Plain GRPO, hybrid, micro-batch semantics, and when the teacher follows."""

from typing import Any

import pytest
import tiny
import torch
from spread import slow_are
from trl import GRPOTrainer  # pyright: ignore[reportPrivateImportUsage]

import sdpo.trainer
from sdpo.config import ConfigError, SDPOConfig
from sdpo.trainer import SDPOTrainer
from sdpo.trainer_checks import check_sharding

SMALL: dict[str, Any] = {"distillation_topk": 20}


class Gradients:
    """Keeps the gradients of each optimizer step, before clipping."""

    def __init__(self):
        self.steps: list[dict[str, torch.Tensor]] = []
        self.scales: list[float] = []

    def rollouts(self, *_):
        pass

    def before_micro_batch(self, *_):
        pass

    def micro_batch(self, batch, trace, scale):
        self.scales.append(float(scale))

    def gradients(self, model):
        named = model.named_parameters()
        self.steps.append({n: p.grad.clone() for n, p in named if p.grad is not None})


def first_gradient(folder, config, **args):
    trainer = tiny.trainer(folder, config, args={"max_steps": 1, **args})
    trainer.recorder = Gradients()
    trainer.train()
    return trainer.recorder.steps[0]


def distance(one, other):
    gap = sum(float((one[name] - other[name]).square().sum()) for name in one)
    return (gap / sum(float(g.square().sum()) for g in other.values())) ** 0.5


def test_switched_off_it_is_grpo_bit_for_bit(tmp_path):
    args = {"max_steps": 3, "num_iterations": 2}
    plain = tiny.trainer(tmp_path, kind=GRPOTrainer, args=args)
    before = tiny.weights(plain.model)
    plain.train()
    ours = tiny.trainer(tmp_path, SDPOConfig(enabled=False), args=args)
    ours.train()
    assert tiny.same(tiny.weights(plain.model), tiny.weights(ours.model))
    assert not tiny.same(tiny.weights(plain.model), before)
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
    expected = {name: 0.3 * grpo[name] + 0.7 * pure[name] for name in grpo}
    assert distance(both, expected) < 1e-5
    assert distance(both, {name: 0.7 * grpo[name] + 0.3 * pure[name] for name in grpo}) > 0.1


def test_a_parent_with_a_loss_of_its_own_does_not_replace_ours(tmp_path, monkeypatch):
    """Unsloth's patch gives `trl.GRPOTrainer` a `compute_loss` that never asks `_compute_loss`."""
    expected = first_gradient(tmp_path, SDPOConfig(**SMALL))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        raise AssertionError("this would be GRPO")

    monkeypatch.setattr(GRPOTrainer, "compute_loss", compute_loss)
    assert tiny.same(first_gradient(tmp_path, SDPOConfig(**SMALL)), expected)
    with pytest.raises(ConfigError, match="importing unsloth replaces it"):
        tiny.trainer(tmp_path, SDPOConfig(hybrid_lambda=0.3, **SMALL))


def test_hybrid_at_one_has_the_gradient_of_grpo(tmp_path):
    plain = tiny.trainer(tmp_path, SDPOConfig(enabled=False), args={"max_steps": 1})
    plain.recorder = Gradients()
    plain.train()
    grpo = first_gradient(tmp_path, SDPOConfig(hybrid_lambda=1.0, **SMALL))
    # Not bitwise: rows keep the order of generation, which TRL shuffles.
    assert distance(grpo, plain.recorder.steps[0]) < 1e-5


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
    assert distance(found["exact", 4], found["exact", 8]) < 1e-5
    assert distance(found["exact", 2], found["exact", 8]) < 1e-5
    assert distance(found["verl", 8], found["exact", 8]) < 1e-5
    assert distance(found["verl", 2], found["verl", 8]) > 1e-2


class OneSuccess(tiny.Alternating):
    """Only the first row succeeds, so that it alone has no demonstration."""

    def __call__(self, completions, **_):
        self.last_feedback = [""] * len(completions)
        return [float(row == 0) for row in range(len(completions))]


def uneven_gradient(folder, config, size, steps):
    args = {
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": steps,
        "num_generations": 8,
        "max_steps": 1,
    }
    trainer = tiny.trainer(folder, config, args=args, reward_funcs=[OneSuccess()])
    trainer.recorder = Gradients()
    trainer.train()
    return trainer.recorder.steps[0]


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
    trainer = tiny.trainer(tmp_path, SDPOConfig(**SMALL), args=args)
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
        trainer = tiny.trainer(
            tmp_path, SDPOConfig(**SMALL), args={"steps_per_generation": steps, "max_steps": 1}
        )
        trainer.train()
        assert all(("old_log_probs" in part) == expected for part in trainer._buffered_inputs)


def test_on_policy_a_cap_below_one_still_acts(tmp_path):
    whole = first_gradient(tmp_path, SDPOConfig(**SMALL))
    capped = first_gradient(tmp_path, SDPOConfig(is_clip=0.5, **SMALL))
    assert distance(capped, {name: 0.5 * g for name, g in whole.items()}) < 1e-6


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
        tiny.trainer(tmp_path, SDPOConfig(**config), args=args)


@pytest.mark.parametrize("kind", ["fsdp", "deepspeed"])
def test_sharded_students_are_refused(kind):
    with pytest.raises(ConfigError, match="shards the student"):
        check_sharding(**{"fsdp": False, "deepspeed": False, kind: True})


def test_the_trainer_asks_whether_its_student_is_sharded(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(sdpo.trainer, "check_sharding", lambda **on: asked.append(on))
    tiny.trainer(tmp_path, SDPOConfig())
    # Once by what is asked for, before anything is loaded, and once by what accelerate made of it.
    assert asked == [{"fsdp": False, "deepspeed": False}] * 2


def test_temperature_is_taken_from_the_sampling_temperature(tmp_path):
    trainer = tiny.trainer(tmp_path, SDPOConfig(), args={"temperature": 0.7})
    assert trainer.loss_config.temperature == 0.7
    assert isinstance(trainer, SDPOTrainer)
