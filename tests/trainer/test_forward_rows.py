"""How many rows go through student and teacher: no more than the loss needs."""

from collections import defaultdict
from typing import Any

import pytest
import torch

from sdpo.settings.config import SDPOConfig
from sdpo.trainer import self_teachers
from sdpo.trainer.sdpo_trainer import SDPOTrainer
from tests.helpers.trainers import tiny_trainer

pytestmark = pytest.mark.usefixtures("packages_are_looked_up_once")


class FirstGroupOnly(tiny_trainer.Alternating):
    """Two of the first group succeed, nobody of the others: their rows have no signal."""

    def __call__(self, completions, **columns):
        super().__call__(completions, **columns)
        return [float(row in (0, 2)) for row in range(len(completions))]


def rows_seen(folder, monkeypatch, implementation: str, **args: Any) -> dict[str, list[int]]:
    """Rows of each forward pass while the trainer learns, generation left out."""
    seen: dict[str, list[int]] = defaultdict(list)
    config = SDPOConfig(distillation_topk=20, is_clip=2.0, loss_implementation=implementation)
    settings = {"generation_batch_size": 8, "steps_per_generation": None, "max_steps": 2}
    settings |= {"gradient_accumulation_steps": 4, **args}
    trainer = tiny_trainer.trainer(folder, config, args=settings, reward_funcs=[FirstGroupOnly()])

    def student(module, inputs, named):
        if named.get("use_cache") is False:
            seen["student" if torch.is_grad_enabled() else "scoring"].append(
                len(named["input_ids"])
            )

    trainer.model.register_forward_pre_hook(student, with_kwargs=True)
    trainer.teacher.weights.module.register_forward_pre_hook(
        lambda module, inputs, named: seen["teacher"].append(len(named["input_ids"])),
        with_kwargs=True,
    )
    real = SDPOTrainer._self_distillation_loss

    def noted(self, model, inputs):
        mask = inputs["self_distillation_mask"]
        seen["all"].append(len(mask))
        seen["with signal"].append(max(1, int(mask.sum())))
        return real(self, model, inputs)

    monkeypatch.setattr(SDPOTrainer, "_self_distillation_loss", noted)
    trainer.train()
    return seen


@pytest.mark.parametrize("implementation", ["logits", "fused"])
def test_only_rows_with_signal_reach_the_teacher(implementation, tmp_path, monkeypatch):
    seen = rows_seen(tmp_path, monkeypatch, implementation)
    assert sum(seen["with signal"]) < sum(seen["all"])
    assert seen["teacher"] == seen["with signal"]
    assert seen["student"] == seen["all" if implementation == "logits" else "with signal"]


@pytest.mark.parametrize("implementation", ["logits", "fused"])
def test_the_student_runs_once_on_policy_and_is_scored_before_otherwise(
    implementation, tmp_path, monkeypatch
):
    assert not rows_seen(tmp_path / "on", monkeypatch, implementation)["scoring"]
    off = rows_seen(tmp_path / "off", monkeypatch, implementation, num_iterations=2, max_steps=4)
    assert sum(off["scoring"]) == sum(off["all"]) // 2


def test_a_teacher_that_sees_all_rows_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(self_teachers, "at_rows_with_signal", lambda batch, answer: answer(batch))
    seen = rows_seen(tmp_path, monkeypatch, "logits")
    assert sum(seen["teacher"]) > sum(seen["with signal"])


def test_answers_stand_at_their_rows():
    batch = {"self_distillation_mask": torch.tensor([0.0, 1.0, 0.0, 1.0]), "x": torch.arange(4.0)}
    found = self_teachers.at_rows_with_signal(batch, lambda rows: rows["x"].unsqueeze(-1) + 10)
    assert found.squeeze(-1).tolist() == [0, 11, 0, 13]
    nobody = {**batch, "self_distillation_mask": torch.zeros(4)}
    assert not self_teachers.at_rows_with_signal(
        nobody, lambda rows: rows["x"].unsqueeze(-1) + 10
    ).any()
