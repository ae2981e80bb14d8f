"""The tiny model, tokenizer and completions that every side of a trainer's audit starts from."""

import copy
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sdpo.fixtures import PACKAGED
from sdpo.parity.trainers.scenarios.scenario import Generation, Scenario

_SEED = 0
_LORA_RANK = 4
NUDGED = "model.layers.1.mlp.down_proj.weight"
EXCHANGED = (424, 425)
"""Entries of the vocabulary that no text of the scenarios has."""
_LORA_MODULES = ("q_proj", "v_proj")


def tiny_tokenizer() -> Any:
    """Copy the recorded tokenizer: 425 entries, ends turns with id 420, pads with 421.

    Trainers change the tokenizer they are given, so no two of them should share one.
    """
    return copy.deepcopy(_recorded_tokenizer())


def handed_tokenizer(scenario: Scenario) -> Any:
    """Copy the tokenizer as a trainer is handed it: the recorded one pads on the right.

    Under the disguise `left padding` it pads on the left. Which side a trainer pads on is its own
    business, so that this must not show.
    """
    tokenizer = tiny_tokenizer()
    if scenario.disguise == "left padding":
        tokenizer.padding_side = "left"
    return tokenizer


@cache
def _recorded_tokenizer() -> Any:
    """Read the recorded tokenizer, once."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(PACKAGED / "reprompt" / "tokenizer")


def tiny_model(scenario: Scenario, folder: Path) -> nn.Module:
    """Make a Qwen2 of two layers in float32, the same for each call with the same scenario.

    It lies in `folder/model`, as its configuration says, because a trainer may build its teacher
    from that path; a model that is there already is taken instead. With `scenario.lora` a PEFT
    model whose factors are `A` random and `B` zero. With `scenario.poisoned_token` that token's
    input embedding is NaN.

    Raises:
        ValueError: the poisoned text is not one token.
    """
    path = folder / "model"
    if (path / "config.json").is_file():
        model = _load(path)
    else:
        dropout = 0.0 if scenario.lora else scenario.dropout
        model = copy.deepcopy(_loaded_model(dropout, scenario.poisoned_token, scenario.disguise))
        model.save_pretrained(path)
        model.config.name_or_path = model.name_or_path = str(path)
    if scenario.moved:
        nudge(model)
    return _with_adapter(model, scenario.dropout) if scenario.lora else model


@torch.no_grad()
def nudge(model: nn.Module) -> None:
    """Move the last layer's projection, so that logits change by much more than rounding."""
    model.get_parameter(NUDGED).mul_(1.25)


@torch.no_grad()
def _disguise_head(model: nn.Module, disguise: str) -> None:
    """Change the head so that nothing changes: all rows by one vector, or the place of two."""
    head = model.get_parameter("lm_head.weight")
    if disguise == "shifted head":
        head.add_(torch.linspace(-0.1, 0.1, head.shape[1]))
    elif disguise == "exchanged head":
        first, second = EXCHANGED
        head[[first, second]] = head[[second, first]]


def _load(path: Path) -> Any:
    """Load the model that lies in a folder, in float32."""
    from transformers import Qwen2ForCausalLM

    return Qwen2ForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")


@cache
def _loaded_model(dropout: float, poisoned_token: str | None, disguise: str) -> Any:
    """Load the model from a checkpoint, once: that takes far longer than a copy of it."""
    first = _initial_model(dropout, poisoned_token)
    _disguise_head(first, disguise)
    with tempfile.TemporaryDirectory(prefix="sdpo-model-") as folder:
        first.save_pretrained(folder)
        return _load(Path(folder))


def _initial_model(dropout: float, poisoned_token: str | None) -> Any:
    """Make the model before it is written."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    settings: dict[str, Any] = {"attn_implementation": "eager"}
    config = Qwen2Config(
        vocab_size=426,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        initializer_range=0.3,
        attention_dropout=dropout,
        **settings,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        model = Qwen2ForCausalLM(config).float()
    if poisoned_token is not None:
        ids = tiny_tokenizer().encode(poisoned_token, add_special_tokens=False)
        if len(ids) != 1:
            raise ValueError(f"{poisoned_token=} is {len(ids)} tokens; it must be one")
        with torch.no_grad():
            model.model.embed_tokens.weight[ids[0]] = torch.nan
    return model


def _with_adapter(model: Any, dropout: float = 0.0) -> nn.Module:
    """Add LoRA factors to two projections of each layer."""
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        r=_LORA_RANK,
        lora_alpha=2 * _LORA_RANK,
        lora_dropout=dropout,
        target_modules=list(_LORA_MODULES),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED + 1)
        return get_peft_model(model, settings)


def completion_ids(generation: Generation) -> tuple[tuple[int, ...], ...]:
    """Return the token ids of each row's completion.

    A finished row is its text and the end token. A truncated one is cut, as a sampler would, at the
    greatest length of the generation: that of its longest finished row.

    Raises:
        ValueError: a truncated row is shorter than that, or two rows have the same ids, so that
            they could not be told apart.
    """
    tokenizer = tiny_tokenizer()
    ids = [tokenizer.encode(r.completion, add_special_tokens=False) for r in generation.rollouts]
    cut = [rollout.truncated for rollout in generation.rollouts]
    finished = [len(row) + 1 for row, short in zip(ids, cut, strict=True) if not short]
    limit = max(finished or [min(map(len, ids))])
    rows = []
    for number, (row, short) in enumerate(zip(ids, cut, strict=True)):
        if short and len(row) < limit:
            raise ValueError(
                f"row {number} is truncated but has {len(row)} tokens, fewer than the {limit} of "
                "the longest finished row: a sampler would have gone on; make its text longer"
            )
        rows.append(tuple(row[:limit] if short else [*row, tokenizer.eos_token_id]))
    if len(set(rows)) < len(rows):
        raise ValueError("two rows of a generation have the same completion; make them differ")
    return tuple(rows)


def prompt_ids(generation: Generation) -> list[list[int]]:
    """Return the token ids of each row's prompt, with the header of the answer."""
    tokenizer = tiny_tokenizer()
    conversations = [list(conversation) for conversation in generation.conversations]
    ids = tokenizer.apply_chat_template(
        conversations, add_generation_prompt=True, return_dict=True
    )["input_ids"]
    return [ids[row // generation.group_size] for row in range(len(generation.rollouts))]
