"""Makes recipes from the entries of a case list: tensors from shapes, dtypes and seeds.

Random numbers lie on a grid of 2⁻¹⁰ (logits in bfloat16 on its own), so that the same list gives
the same inputs whatever kernels made them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sdpo.fixtures import packaged_family
from sdpo.parity.record.case_list import CaseList, LossEntry, PromptEntry, UpdateEntry
from sdpo.parity.record.recipes import Recipe, dtype_named

GRID = 1024.0
PADDING = 421
LOSS_CONFIG = (
    "full_logit_distillation",
    "alpha",
    "distillation_topk",
    "distillation_add_tail",
    "is_clip",
    "loss_agg_mode",
    "temperature",
    "dtype",
    "rollout_is_threshold",
)
ACTOR = {
    "ppo_mini_batch_size": 4,
    "ppo_micro_batch_size_per_gpu": 4,
    "ppo_epochs": 1,
    "loss_agg_mode": "token-mean",
    "grad_clip": 1.0,
    "entropy_coeff": 0.0,
    "calculate_entropy": False,
    "use_kl_loss": False,
    "kl_loss_coef": 0.001,
    "kl_loss_type": "low_var_kl",
    "use_dynamic_bsz": False,
    "ppo_max_token_len_per_gpu": 16384,
    "compute_dtype": "float32",
    "use_remove_padding": False,
}
DISTILLATION = {
    "full_logit_distillation": True,
    "alpha": 0.5,
    "distillation_topk": 8,
    "distillation_add_tail": True,
    "is_clip": 2.0,
    "teacher_regularization": "ema",
    "teacher_update_rate": 0.05,
}


def recipes_of(cases: CaseList, tokenizer: Any) -> list[Recipe]:
    """The recipes of all cases of a list, in its order.

    Args:
        cases: the list.
        tokenizer: makes tokens of the responses of teacher prompts.
    """
    return [
        *map(loss_recipe, cases.loss),
        *(prompt_recipe(entry, tokenizer) for entry in cases.reprompt),
        *map(update_recipe, cases.update),
    ]


def on_grid(values: Tensor) -> Tensor:
    """Round to multiples of 2⁻¹⁰."""
    return (values * GRID).round() / GRID


def mode_of(entry: LossEntry) -> str:
    """The short name of the support."""
    if not entry.full_logit_distillation:
        return "sampled"
    if entry.distillation_topk is None:
        return "full_vocab"
    return "topk_tail" if entry.distillation_add_tail else "topk_renorm"


def loss_recipe(entry: LossEntry) -> Recipe:
    """Logits, responses, masks and log-probs of a loss case."""
    random = torch.Generator().manual_seed(entry.seed)
    shape = (entry.rows, entry.tokens, entry.vocabulary)
    student = on_grid(torch.randn(shape, generator=random) * entry.logit_scale)
    distance = torch.randn(shape, generator=random) * entry.teacher_distance
    teacher = on_grid(student + distance)
    teacher_dtype = entry.teacher_dtype or entry.dtype
    # recorded as float32, but exactly representable in the dtype of the computation
    student = student.to(dtype_named(entry.dtype)).float()
    teacher = teacher.to(dtype_named(teacher_dtype)).float()
    responses = torch.randint(entry.vocabulary, shape[:2], generator=random)
    lengths = entry.lengths or [max(1, entry.tokens - 2 * row) for row in range(entry.rows)]
    mask = torch.arange(entry.tokens) < torch.tensor(lengths).unsqueeze(1)
    inputs = {
        "in.student_logits": student,
        "in.teacher_logits": teacher,
        "in.responses": responses,
        "in.response_mask": mask.to(dtype_named(entry.mask_dtype)),
    }
    log_probs = (student / entry.temperature).log_softmax(-1)
    taken = log_probs.gather(-1, responses.unsqueeze(-1)).squeeze(-1)
    if entry.old_distance is not None:
        noise = torch.randn(shape[:2], generator=random) * entry.old_distance
        inputs["in.old_log_probs"] = on_grid(taken + noise)
    if entry.rollout_is_threshold is not None:
        noise = torch.randn(shape[:2], generator=random) * entry.rollout_distance
        old = inputs.setdefault("in.old_log_probs", on_grid(taken))
        inputs["in.rollout_log_probs"] = on_grid(old + noise)
    if entry.rollout_weights is not None:
        inputs["in.rollout_is_weights"] = repeated(entry.rollout_weights, shape[:2])
    if entry.counted_rows is not None:
        inputs["in.self_distillation_mask"] = torch.tensor(entry.counted_rows).float()
    config = {"mode": mode_of(entry)} | {name: getattr(entry, name) for name in LOSS_CONFIG}
    if entry.teacher_dtype is not None:
        config["teacher_dtype"] = entry.teacher_dtype
    return Recipe("loss", described(entry) | {"config": config}, inputs)


def described(entry: LossEntry | PromptEntry | UpdateEntry) -> dict[str, Any]:
    """What every entry says of its case."""
    return {"id": entry.id, "description": entry.description, "tags": entry.tags}


def repeated(values: Sequence[float], shape: Sequence[int]) -> Tensor:
    """The values one after the other, over and over, in a shape."""
    count = torch.Size(shape).numel()
    return torch.tensor(values).repeat(-(-count // len(values)))[:count].reshape(*shape)


def prompt_recipe(entry: PromptEntry, tokenizer: Any) -> Recipe:
    """Responses, rewards and masks of a batch of attempts."""
    rows = len(entry.responses)
    responses = torch.full((rows, entry.width), PADDING)
    mask, rewards = (
        torch.zeros(rows, entry.width, dtype=torch.int64),
        torch.zeros(rows, entry.width),
    )
    for row, text in enumerate(entry.responses):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][: entry.width]
        responses[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
        mask[row, : len(ids)] = 1
        rewards[row, max(len(ids) - 1, 0)] = entry.rewards[row]
    defaults = packaged_family("reprompt").manifest["defaults_yaml"]
    config = {
        "loss_mode": "sdpo",
        "self_distillation": {**defaults, **entry.settings},
        "template_source": "yaml",
        "apply_chat_template_kwargs": entry.chat_template_kwargs,
    }
    infos = {} if entry.feedback is None else {"feedback": entry.feedback}
    asked = {
        "raw_prompt": [[{"role": "user", "content": text}] for text in entry.prompts],
        "uids": entry.uids,
        "reward_extra_infos": infos,
    }
    inputs = {
        "in.responses": responses,
        "in.response_mask": mask,
        "in.token_level_rewards": rewards,
    }
    return Recipe("reprompt", described(entry) | {"config": config, "inputs": asked}, inputs)


def update_recipe(entry: UpdateEntry) -> Recipe:
    """The batches of a case of updates."""
    random = torch.Generator().manual_seed(entry.seed)
    inputs: dict[str, Tensor] = {}
    for number in range(entry.updates):
        batch = update_batch(entry, random)
        inputs |= {f"u{number}.in.{name}": tensor for name, tensor in batch.items()}
    config = {
        "model": entry.model,
        "optimizer": entry.optimizer,
        "actor": {**ACTOR, **entry.actor},
        # TOML has no null
        "self_distillation": {
            name: None if value == "none" else value
            for name, value in {**DISTILLATION, **entry.self_distillation}.items()
        },
        "teacher": entry.teacher,
        "teacher_init": entry.teacher_init,
        "temperature": entry.temperature,
        "save_grads": entry.save_grads,
        "save_all_log_probs": entry.save_all_log_probs,
    }
    given = described(entry) | {"config": config, "updates": entry.updates}
    return Recipe("update", given, inputs)


def update_batch(entry: UpdateEntry, random: torch.Generator) -> dict[str, Tensor]:
    """One batch: prompts padded on the left, responses on the right, old log-probs on the grid."""
    sizes: Mapping[str, Any] = packaged_family("update").manifest["models"][entry.model]["config"]
    rows, width = len(entry.lengths), max(entry.lengths)
    mask = (torch.arange(width) < torch.tensor(entry.lengths).unsqueeze(1)).long()
    responses = torch.randint(1, sizes["vocab_size"], (rows, width), generator=random) * mask
    batch = {"responses": responses, "response_mask": mask}
    for side, longest in (("", entry.prompt), ("teacher_", entry.teacher_prompt)):
        lengths = torch.randint(2, longest + 1, (rows,), generator=random)
        kept = (torch.arange(longest) >= longest - lengths.unsqueeze(1)).long()
        ids = torch.randint(1, sizes["vocab_size"], (rows, longest), generator=random) * kept
        attention = torch.cat([kept, mask], 1)
        batch[f"{side}input_ids"] = torch.cat([ids, responses], 1)
        batch[f"{side}attention_mask"] = attention
        batch[f"{side}position_ids"] = (attention.cumsum(1) - 1).clamp(min=0)
    counted = entry.counted_rows or [1] * rows
    batch["self_distillation_mask"] = torch.tensor(counted).float()
    batch["advantages"] = torch.zeros(rows, width)
    batch["old_log_probs"] = on_grid(-3.0 * torch.rand(rows, width, generator=random)) * mask
    return batch
