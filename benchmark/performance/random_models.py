"""Makes random models in Qwen2's architecture, and our trainer on prompts that never end."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Qwen2ForCausalLM

    from sdpo.settings.config import SDPOConfig
    from sdpo.trainer.sdpo_trainer import SDPOTrainer

Shape = dict[str, int | bool]
"""Fields of `Qwen2Config`."""


def qwen2_shape(
    hidden: int,
    intermediate: int,
    layers: int,
    heads: int,
    key_value_heads: int,
    vocabulary: int,
    *,
    tied: bool = False,
) -> Shape:
    """Name the fields of a shape.

    Args:
        hidden: width of the hidden states.
        intermediate: width within a feed-forward layer.
        layers: number of layers.
        heads: of attention.
        key_value_heads: heads of keys and values.
        vocabulary: number of tokens.
        tied: whether the head is the embedding.
    """
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
    }


def random_model(shape: Shape, **settings: Any) -> "Qwen2ForCausalLM":
    """Make a model with the same random weights in every process."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**shape, **settings))


def reward_every(count: int) -> Callable[..., list[float]]:
    """Make a reward under which every `count`-th completion succeeds."""

    def reward(completions: Sequence[object], **columns: object) -> list[float]:
        return [float(row % count == 0) for row in range(len(completions))]

    return reward


def trainer_of(
    model: "PreTrainedModel",
    config: "SDPOConfig",
    prompts: Sequence[str],
    folder: Path,
    reward: Callable[..., list[float]],
    **train: Any,
) -> "SDPOTrainer":
    """Build our trainer with the recorded tokenizer; it keeps no checkpoints and logs nowhere.

    Args:
        model: causal language model.
        config: of the self-distillation.
        prompts: the users' messages.
        folder: of the trainer's output.
        reward: of completions.
        train: further fields of `GRPOConfig`.
    """
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig  # pyright: ignore[reportPrivateImportUsage]

    from sdpo.fixtures import PACKAGED
    from sdpo.trainer.sdpo_trainer import SDPOTrainer

    usual: dict[str, Any] = {
        "use_cpu": not torch.cuda.is_available(),
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
    conversations = [[{"role": "user", "content": prompt}] for prompt in prompts]
    return SDPOTrainer(
        model=model,
        args=GRPOConfig(output_dir=str(folder), **{**usual, **train}),
        sdpo_config=config,
        processing_class=AutoTokenizer.from_pretrained(PACKAGED / "reprompt" / "tokenizer"),
        reward_funcs=[reward],
        train_dataset=Dataset.from_dict({"prompt": conversations}),
    )
