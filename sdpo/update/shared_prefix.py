"""Rows with the same prompt share its forward pass, and its backward pass.

The attempts of a group answer one prompt, and most of their teacher prompts show the same
demonstration. Where that is asked for, each distinct prompt of a micro-batch runs through the model
once, and its rows go on from its keys and values:

    distinct prompts (U, P-1) ─► keys and values ─► those of each row ─► last prompt token, response

The results are those of whole rows but for rounding. With dropout in training, rows with the same
prompt also share what is dropped in it.
"""

from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from sdpo.settings.config import ConfigError

MODEL_INPUTS = ("input_ids", "attention_mask", "position_ids")
CACHE_NAMES = ("cache", "past_key_values")
"""What transformers calls the keys and values today, and called them before."""
REMEDY = "use share_prompts='none'"


def forward_parameters(model: Any) -> list[str]:
    """What the language model inside DDP and PEFT can be called with."""
    model = getattr(model, "module", model)
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    return list(signature(model.forward).parameters)


def model_inputs(
    model: nn.Module, batch: Mapping[str, Tensor], prefix: str = "", *, share_prompts: bool = False
) -> dict[str, object]:
    """What to call the model with, so that its last T+1 outputs belong to the responses.

    Args:
        model: runs the distinct prompts here, with gradient if that is on, outside DDP.
        batch: `input_ids`, `attention_mask`, `position_ids` `(B, P+T)`, `responses` `(B, T)`.
        prefix: of the inputs' names.
        share_prompts: whether rows with the same prompt share its computation. A micro-batch
            without such rows is computed as a whole either way.

    Raises:
        ConfigError: the model gives no keys and values to go on from.
    """
    whole = {name: batch[prefix + name] for name in MODEL_INPUTS}
    # The last prompt token predicts the first response token.
    shared = whole["input_ids"].shape[1] - batch["responses"].shape[1] - 1
    if share_prompts and shared > 0:
        first, rows = distinct_prompts(whole, shared)
        if len(first) < len(rows):
            return continuation(getattr(model, "module", model), whole, shared, first, rows)
    return {**whole, "use_cache": False}


def distinct_prompts(whole: Mapping[str, Tensor], shared: int) -> tuple[Tensor, Tensor]:
    """First row `(U,)` of each distinct prompt, and the number `(B,)` of each row's prompt."""
    seen = whole["attention_mask"][:, :shared]
    prompts = [seen, *(whole[name][:, :shared] * seen for name in ("input_ids", "position_ids"))]
    distinct, rows = torch.unique(torch.cat(prompts, dim=1), dim=0, return_inverse=True)
    numbers = torch.arange(len(distinct), device=rows.device).unsqueeze(-1)
    return (rows == numbers).int().argmax(dim=1), rows


def continuation(
    model: nn.Module, whole: Mapping[str, Tensor], shared: int, first: Tensor, rows: Tensor
) -> dict[str, object]:
    """Inputs of the rows behind their first `shared` tokens, whose keys and values come along.

    Columns in which every prompt is padding are left out.
    """
    start = int(whole["attention_mask"][:, :shared].any(dim=0).int().argmax())
    prompts: dict[str, Any] = {name: whole[name][first, start:shared] for name in MODEL_INPUTS}
    parameters = forward_parameters(model)
    if "logits_to_keep" in parameters:
        prompts["logits_to_keep"] = 1
    name = next((name for name in CACHE_NAMES if name in parameters), None)
    cache: Any = getattr(model(**prompts, use_cache=True), name, None) if name else None
    layers = getattr(cache, "layers", [None])
    if name is None or not all(hasattr(layer, "batch_select_indices") for layer in layers):
        raise ConfigError(
            f"{type(model).__name__} gives no keys and values that rows could share: {REMEDY}"
        )
    cache.batch_select_indices(rows)
    return {
        "input_ids": whole["input_ids"][:, shared:],
        "attention_mask": whole["attention_mask"][:, start:],
        "position_ids": whole["position_ids"][:, shared:],
        name: cache,
        "use_cache": True,
    }
