"""Random updates of the tiny recorded models: settings, batches and teachers beyond the recording.

Some are wrong on purpose (sizes, teachers, batches): both sides must refuse them alike.
"""

import random
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sdpo.fixtures import packaged_family
from sdpo.fixtures.models import build_model
from sdpo.reference.loss import LOSS_AGG_MODES

MODES: list[dict[str, Any]] = [
    {"full_logit_distillation": False, "alpha": 1.0},
    {"full_logit_distillation": True, "distillation_topk": None},
    {"full_logit_distillation": True, "distillation_topk": 8, "distillation_add_tail": True},
    {"full_logit_distillation": True, "distillation_topk": 8, "distillation_add_tail": False},
]


@dataclass
class Given:
    """One case: settings as the recording has them, a kind of teacher, one or two batches."""

    seed: int
    actor: dict[str, Any]
    distillation: dict[str, Any]
    teacher: str
    temperature: float
    batches: list[dict[str, Tensor]] = field(repr=False)

    def models(self) -> tuple[nn.Module, nn.Module | None, torch.optim.Optimizer]:
        """Fresh actor, teacher and optimizer."""
        family = packaged_family("update")
        student = build_model(family, "A")
        teacher: nn.Module | None = build_model(family, "A", "teacher")
        if self.teacher in ("none", "actor"):
            teacher = None if self.teacher == "none" else student
        return student, teacher, torch.optim.SGD(student.parameters(), lr=0.3, momentum=0.5)


def given_update(seed: int) -> Given:
    """The case of a seed."""
    chance = random.Random(seed)
    torch.manual_seed(seed)
    actor, rows = given_actor(chance)
    trust_region = chance.random() < 0.3
    distillation = dict(chance.choice(MODES)) | {
        "is_clip": chance.choice([None, 0.5, 2.0]),
        "teacher_regularization": "trust-region" if trust_region else "ema",
        "teacher_update_rate": chance.choice([0.0, 0.05, 1.0]),
    }
    if distillation["full_logit_distillation"]:
        distillation["alpha"] = chance.choice([0.0, 0.3, 1.0])
    if not distillation["full_logit_distillation"] and chance.random() < 0.1:
        distillation["alpha"] = 0.5
    # fused kernels need models of their own; what refuses them does so before
    refused = distillation["full_logit_distillation"] or trust_region
    actor["use_fused_kernels"] = refused and chance.random() < 0.1
    teachers = ["trust_region"] * 12 if trust_region else ["separate"] * 12
    return Given(
        seed,
        actor,
        distillation,
        chance.choice([*teachers, "none", "actor"]),
        chance.choice([0.7, 1.0, 1.3]),
        [given_batch(chance, rows, actor) for _ in range(chance.choice([1, 1, 2]))],
    )


def given_actor(chance: random.Random) -> tuple[dict[str, Any], int]:
    """Settings of the actor, and the rows of a batch."""
    mini = chance.randrange(1, 5)
    actor = {
        "ppo_mini_batch_size": mini,
        "ppo_micro_batch_size_per_gpu": chance.choice([1, mini, mini, 2]),
        "ppo_epochs": chance.choice([1, 1, 1, 2]),
        "loss_agg_mode": chance.choice(LOSS_AGG_MODES),
        "grad_clip": chance.choice([0.1, 1.0, 100.0]),
        "entropy_coeff": chance.choice([0.0, 0.0, 0.01]),
        "calculate_entropy": chance.random() < 0.3,
        "use_kl_loss": chance.random() < 0.3,
        "kl_loss_coef": 0.1,
        "use_dynamic_bsz": chance.random() < 0.3,
        "ppo_max_token_len_per_gpu": 40,
        "use_remove_padding": chance.random() < 0.3,
    }
    if chance.random() < 0.03:
        actor["grad_clip"] = None
    return actor, chance.choice([mini, mini, mini * 2, mini + 1])


def padded_prompts(
    chance: random.Random, prompts: int, response_mask: Tensor, responses: Tensor, prefix: str
) -> dict[str, Tensor]:
    """Prompts of random lengths, padded on the left, before the responses."""
    rows = len(responses)
    mask = torch.zeros(rows, prompts, dtype=torch.long)
    for row in range(rows):
        mask[row, -chance.randrange(1, prompts + 1) :] = 1
    ids = torch.randint(1, 40, (rows, prompts)) * mask
    attention = torch.cat([mask, response_mask.long()], 1)
    return {
        f"{prefix}input_ids": torch.cat([ids, responses], 1),
        f"{prefix}attention_mask": attention,
        f"{prefix}position_ids": (attention.cumsum(1) - 1).clamp(min=0),
    }


def given_batch(chance: random.Random, rows: int, actor: dict[str, Any]) -> dict[str, Tensor]:
    """Everything that an update takes; now and then something is left out or does not count."""
    width = chance.randrange(1, 8)
    mask = torch.zeros(rows, width, dtype=torch.long)
    for row in range(rows):
        mask[row, : chance.randrange(width + 1) if chance.random() < 0.3 else width] = 1
    if chance.random() < 0.2:
        mask *= torch.rand(rows, width) < 0.7  # holes
    responses = torch.randint(1, 40, (rows, width)) * mask
    batch = {
        **padded_prompts(chance, chance.randrange(1, 6), mask, responses, ""),
        **padded_prompts(chance, chance.randrange(1, 9), mask, responses, "teacher_"),
        "responses": responses,
        "response_mask": mask,
        "old_log_probs": -torch.rand(rows, width) * 5,
        "advantages": torch.zeros(rows, width),
        "ref_log_prob": -torch.rand(rows, width) * 5,
        "self_distillation_mask": (torch.rand(rows) < 0.7).float(),
    }
    if chance.random() < 0.3:
        batch["rollout_is_weights"] = torch.rand(rows, width) * 2
    if chance.random() < 0.4:
        batch["rollout_log_probs"] = -torch.rand(rows, width) * 5
    if chance.random() < 0.05:
        del batch[chance.choice(list(batch))]
    # how a dynamic batch is split is no part of the transcription, and fails without any token
    if chance.random() < 0.1 and not actor["use_dynamic_bsz"]:
        for prefix in ("", "teacher_"):
            batch.get(f"{prefix}attention_mask", mask).zero_()
    return batch
