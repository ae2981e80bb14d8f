"""Tiny trainers with an adapter, with one success, or under the lockstep audit."""

import csv
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from sdpo.settings.config import SDPOConfig
from sdpo.trainer.sdpo_trainer import SDPOTrainer
from tests.helpers.trainers import tiny_trainer


class OneSuccess(tiny_trainer.Alternating):
    """Only the first row succeeds, so that it alone has no demonstration."""

    def __call__(self, completions, **_):
        self.last_feedback = [""] * len(completions)
        return [float(row == 0) for row in range(len(completions))]


def lora(model=None, dropout: float = 0.0, **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "v_proj", "down_proj"],
    }
    torch.manual_seed(1)
    return get_peft_model(
        model or tiny_trainer.model(), LoraConfig(lora_dropout=dropout, **settings, **changes)
    )


def audited(folder, *, kind=SDPOTrainer, args=None, reward=None, model=None, **settings):
    chosen: dict[str, Any] = {"distillation_topk": 20, "audit_every": 1, **settings}
    return kind(
        model=model or tiny_trainer.model(),
        args=tiny_trainer.arguments(folder, **(args or {})),
        sdpo_config=SDPOConfig(**chosen),
        processing_class=tiny_trainer.tokenizer(),
        reward_funcs=[reward or tiny_trainer.Alternating(3, feedback=True)],
        train_dataset=tiny_trainer.questions(),
    )


def rows_of(trainer, name="parity.csv"):
    with (trainer.audit.folder / name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))
