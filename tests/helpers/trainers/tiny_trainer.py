"""Tiny trainers: a model of some thousand weights, the recorded tokenizer, addition as the task.

The sampler is replaced by a fixed list of answers where a test needs some rows to succeed.
"""

import copy
import functools
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig  # pyright: ignore[reportPrivateImportUsage]

from sdpo.fixtures import PACKAGED
from sdpo.settings.config import SDPOConfig
from sdpo.trainer.sdpo_trainer import SDPOTrainer
from sdpo.update.actor_update import response_logits
from sdpo.update.rollouts import update_batch
from tests.helpers.measured import Gap, alike, gap_of, rounding_of

VOCABULARY = 426
WIDE = 0.2
"""Spread of initial weights at which student and teacher are much further apart than rounding."""


@functools.cache
def recorded_tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(PACKAGED / "reprompt" / "tokenizer")


def tokenizer() -> PreTrainedTokenizerBase:
    return copy.deepcopy(recorded_tokenizer())


def model(seed: int = 0, **changes: Any) -> Qwen2ForCausalLM:
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "attn_implementation": "eager",
        **changes,
    }
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(Qwen2Config(**settings)).float()


@functools.cache
def questions() -> Dataset:
    """A data set never changes; to make one takes as long as a step of training."""
    return dataset()


def dataset(rows: int = 4, **columns: Any) -> Dataset:
    prompts = [
        [
            {"role": "system", "content": "Answer with one number."},
            {"role": "user", "content": f"What is {row} + {row}?"},
        ]
        for row in range(rows)
    ]
    return Dataset.from_dict({"prompt": prompts, **columns})


class Alternating:
    """Rewards 1 for every `period`-th completion, with feedback for the others if asked for."""

    __name__ = "alternating"

    def __init__(self, period: int = 2, feedback: bool = False):
        self.period, self.feedback = period, feedback
        self.last_feedback: list[str] | None = []

    def __call__(self, completions: list[Any], **_: Any) -> list[float]:
        rewards = [float(row % self.period == 0) for row in range(len(completions))]
        self.last_feedback = [
            "" if reward or not self.feedback else f"wrong: row {row}"
            for row, reward in enumerate(rewards)
        ]
        return rewards


def arguments(folder: Path | str, **changes: Any) -> GRPOConfig:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_generations": 4,
        "max_completion_length": 6,
        "max_steps": 2,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 3,
        **changes,
    }
    return GRPOConfig(**settings)


def trainer(
    folder: Path | str,
    config: SDPOConfig | None = None,
    *,
    kind: type = SDPOTrainer,
    args: dict[str, Any] | None = None,
    **changes: Any,
) -> Any:
    settings: dict[str, Any] = {
        "model": changes.pop("model", None) or model(),
        "args": arguments(folder, **(args or {})),
        "processing_class": tokenizer(),
        "reward_funcs": [Alternating()],
        "train_dataset": questions(),
        **changes,
    }
    if kind is SDPOTrainer:
        settings["sdpo_config"] = config
    return kind(**settings)


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


class Training(NamedTuple):
    """The student's weights before and after, tokens of each pass, and what rounding makes of it.

    `rounding` is relative to the way that the weights went.
    """

    before: dict[str, torch.Tensor]
    after: dict[str, torch.Tensor]
    tokens: list[int]
    rounding: float


def trained(
    folder: Path, settings: dict[str, Any], args: dict[str, Any], **changes: Any
) -> Training:
    """A short training by SGD, with weights and a rate that make its step many roundings."""
    config = SDPOConfig(**{"distillation_topk": 20, **settings})
    args = {"optim": "sgd", "learning_rate": 1.0, "generation_batch_size": 8, **args}
    args = {"steps_per_generation": None, **args}
    changes = {"model": model(initializer_range=WIDE), **changes}
    own = trainer(folder, config, args=args, **changes)
    before, tokens, gaps = weights(own.model), [], gaps_of(own)
    own.model.register_forward_pre_hook(
        lambda module, inputs, named: tokens.append(named["input_ids"].numel()), with_kwargs=True
    )
    own.train()
    after = weights(own.model)
    return Training(before, after, tokens, rounding_of(gaps, before, after))


def gaps_of(own: Any) -> list[Gap]:
    """Filled in training: how far student and teacher are apart, at each generation."""
    found: list[Gap] = []
    real = own._generate_and_score_completions

    @torch.no_grad()
    def noted(inputs: Any) -> Any:
        rollouts = real(inputs)
        batch = update_batch(rollouts)
        sides = response_logits(own.model, batch), own.teacher.logits(own.model, batch)
        counts = batch["response_mask"] * batch["self_distillation_mask"].unsqueeze(-1)
        if counts.any():
            found.append(gap_of(*sides, counts != 0))
        return rollouts

    own._generate_and_score_completions = noted
    return found


def near(actual: Training, expected: Training) -> bool:
    """Whether two trainings went the same way, within what rounding makes of it."""
    return alike(actual.after, expected.after, expected.rounding, expected.before)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def quiet() -> Any:
    return warnings.catch_warnings()
