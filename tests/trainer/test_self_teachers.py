"""Where teachers keep their weights, and that they answer with them: copies, adapters, averages."""

from typing import Any

import pytest
import torch

from sdpo.parity.recorded.roundings import moved
from sdpo.settings.config import ConfigError, SDPOConfig
from sdpo.trainer.self_teachers import TeacherWarning, build_teacher
from sdpo.update.actor_update import response_logits
from tests.helpers.trainers import tiny_trainer
from tests.helpers.trainers.tiny_variants import lora

pytestmark = pytest.mark.usefixtures("packages_are_looked_up_once")

PROMPT, WIDTH = 5, 3


def batch(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 400, (2, PROMPT + WIDTH), generator=generator)
    mask = torch.ones_like(ids)
    tensors = {"input_ids": ids, "attention_mask": mask, "position_ids": mask.cumsum(-1) - 1}
    teacher = {f"teacher_{name}": tensor for name, tensor in tensors.items()}
    return tensors | teacher | {"responses": ids[:, -WIDTH:]}


@torch.no_grad()
def move(model, amount: float = 0.1, seed: int = 5):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(amount * torch.randn(parameter.shape, generator=generator))


def answers(model) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return response_logits(model, batch(), "teacher_")


def test_a_copy_answers_with_its_own_weights_though_trl_replaced_the_forward(tmp_path):
    """TRL's replaced `forward` holds the original model; a plain deep copy would run that one."""
    trainer = tiny_trainer.trainer(tmp_path, SDPOConfig())
    before, students = trainer.teacher.logits(trainer.model, batch()), answers(trainer.model)
    # a weight that learns is multiplied in another shape, so that not every kernel gives its bits
    assert not moved(students, before)
    move(trainer.model)
    assert torch.equal(trainer.teacher.logits(trainer.model, batch()), before)
    assert moved(answers(trainer.model), before)
    assert "forward" in vars(trainer.model)


@pytest.mark.parametrize("build", [tiny_trainer.model, lora])
def test_modes_of_the_teacher(build):
    for mode, rate, share in (("ema", 0.25, 0.25), ("frozen", 0.05, 0.0), ("ema", 1.0, 1.0)):
        model = build()
        move(model)
        settings: dict[str, Any] = {} if mode == "frozen" else {"teacher_update_rate": rate}
        teacher = build_teacher(model, SDPOConfig(teacher_mode=mode, **settings))
        before = [p.clone() for p in teacher.weights.parameters()]
        move(model, seed=6)
        teacher.update(model)
        live = teacher.weights.student_parameters(model)
        assert before
        for mine, old, new in zip(teacher.weights.parameters(), before, live, strict=True):
            torch.testing.assert_close(mine, (1 - share) * old + share * new)


@pytest.mark.parametrize("build", [tiny_trainer.model, lora])
def test_the_trust_region_mixes_logits_and_never_moves(build):
    model = build()
    teacher = build_teacher(model, SDPOConfig(teacher_mode="trust_region", teacher_update_rate=0.3))
    initial = answers(model)
    move(model)
    teacher.update(model)
    expected = torch.lerp(initial, answers(model), 0.3)
    torch.testing.assert_close(teacher.logits(model, batch()), expected)


@pytest.mark.parametrize(
    "config",
    [
        None,
        {},
        {"teacher_mode": "lora_ema"},
        {"teacher_mode": "lora_ema", "lora_average": "effective"},
    ],
    ids=["copy", "adapter", "lora_ema", "effective"],
)
def test_a_teacher_answers_without_dropout_and_leaves_the_student_as_it_was(config):
    """A teacher in training mode answers differently every time."""
    model = tiny_trainer.model(attention_dropout=0.5) if config is None else lora(dropout=0.5)
    teacher = build_teacher(model, SDPOConfig(**(config or {})))
    move(model)
    model.train()
    flags = {name: (p.requires_grad, p.grad) for name, p in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    first, second = (teacher.logits(model, batch()) for _ in range(2))
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert {name: (p.requires_grad, p.grad) for name, p in model.named_parameters()} == flags
    assert [module.training for module in model.modules()] == modes
    live = [response_logits(model, batch()) for _ in range(2)]
    assert not torch.equal(*live)


def test_two_adapters_of_one_model_are_trained_and_averaged(tmp_path):
    model = lora()
    base = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    config = SDPOConfig(teacher_mode="lora_ema", distillation_topk=20)
    trainer = tiny_trainer.trainer(tmp_path, config, model=model)
    before = [p.clone() for p in trainer.teacher.weights.parameters()]
    trained = {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    after = trainer.teacher.weights.parameters()
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert {n for n, p in trainer.model.named_parameters() if p.requires_grad} == trained
    assert not any("sdpo_teacher" in name for name in trained)
    assert all(torch.equal(p, base[n]) for n, p in model.named_parameters() if n in base)
    optimized = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert not any(id(p) in optimized for p in after)


def test_the_gap_of_averaged_factors_is_the_product_of_the_gaps():
    """One step of the factors' average misses the weights' average by -r (1 - r) ΔB ΔA."""
    model, rate = lora(), 0.05
    move(model)
    config: dict[str, Any] = {"teacher_mode": "lora_ema", "teacher_update_rate": rate}
    factors: Any = build_teacher(model, SDPOConfig(**config))
    effective: Any = build_teacher(model, SDPOConfig(**config, lora_average="effective"))
    torch.testing.assert_close(
        factors.logits(model, batch()), effective.logits(model, batch()), atol=1e-5, rtol=1e-5
    )
    start = {name: p.clone() for name, p in factors.named_parameters().items()}
    move(model, seed=7)
    factors.update(model)
    effective.update(model)
    live = dict(model.named_parameters())
    for name, exact in effective.named_parameters().items():
        layer = effective.weights.layers[name]
        a, b = (f"{name}.lora_{side}.default.weight" for side in "AB")
        gap = (live[b] - start[b]) @ (live[a] - start[a])
        mine = layer.get_delta_weight("sdpo_teacher")
        expected = -rate * (1 - rate) * layer.scaling["default"] * gap
        torch.testing.assert_close(mine - exact, expected, atol=1e-5, rtol=1e-4)
        assert (mine - exact).norm() > 1e-3


def test_the_effective_average_trains(tmp_path):
    config = SDPOConfig(teacher_mode="lora_ema", lora_average="effective", distillation_topk=20)
    trainer = tiny_trainer.trainer(tmp_path, config, model=lora())
    trainer.train()
    assert all(p.abs().sum() > 0 for p in trainer.teacher.weights.parameters())


def test_a_plain_model_has_no_adapters_to_average(tmp_path):
    with pytest.raises(ConfigError, match=r"needs a PEFT model, but this is a plain Qwen2"):
        tiny_trainer.trainer(tmp_path, SDPOConfig(teacher_mode="lora_ema"))


def test_a_quantized_model_without_adapters_is_refused():
    model: Any = tiny_trainer.model()
    model.is_loaded_in_4bit = True
    with pytest.raises(ConfigError, match="quantized and has no PEFT adapter"):
        build_teacher(model, SDPOConfig())


def test_trained_weights_outside_the_adapter_are_refused():
    model = lora()
    model.base_model.model.lm_head.weight.requires_grad_(True)
    for average in ("factors", "effective"):
        with pytest.raises(ConfigError, match="lm_head"):
            build_teacher(model, SDPOConfig(teacher_mode="lora_ema", lora_average=average))


def test_adapters_in_low_precision_are_averaged_in_float32():
    model = lora().bfloat16()
    teacher: Any = build_teacher(model, SDPOConfig(teacher_mode="lora_ema"))
    start = [p.clone() for p in teacher.weights.parameters()]
    move(model, amount=1e-3)
    live = teacher.weights.student_parameters(model)
    for _ in range(20):
        teacher.update(model)
    for mine, old, new in zip(teacher.weights.parameters(), start, live, strict=True):
        torch.testing.assert_close(mine, torch.lerp(new.float(), old, 0.95**20))
    own = dict(model.named_parameters())
    mine = [own[name] for name in teacher.weights.adapter_names]
    pairs = zip(mine, teacher.weights.parameters(), strict=True)
    assert all(torch.equal(low, high.to(low.dtype)) for low, high in pairs)


def test_a_low_precision_average_that_would_stall_is_announced():
    with pytest.warns(TeacherWarning, match="stays behind"):
        build_teacher(tiny_trainer.model().bfloat16(), SDPOConfig())
    build_teacher(tiny_trainer.model().bfloat16(), SDPOConfig(teacher_mode="frozen"))


def test_effective_averages_need_layers_that_are_called():
    """Unsloth's kernels read the weights of adapted layers, so that a hook on them never runs."""
    model = lora()
    config = SDPOConfig(teacher_mode="lora_ema", lora_average="effective")
    teacher: Any = build_teacher(model, config)
    teacher.weights.answer(model, batch(), response_logits)
    for layer in teacher.weights.layers.values():
        layer.register_forward_hook = torch.nn.Identity().register_forward_hook
    with pytest.raises(ConfigError, match="none of them was called"):
        teacher.weights.answer(model, batch(), response_logits)
