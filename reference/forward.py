"""The reference's forward passes: log-probs of the responses, padded or packed.

A transcription of the verl fork's actor, written from its specification and checked against
recorded updates. It keeps the order of operations, the dtypes and the quirks of the original, also
where they look wrong. Models are called like causal language models of transformers:
`model(input_ids=, attention_mask=, position_ids=, use_cache=False).logits`.

Out of scope: several ranks, fused kernels, flash-attention cross-entropy.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdpo.reference.loss import log_probs_from_logits, topk_log_probs

Batch = dict[str, Tensor]

PADDED = ("log_probs", "all_log_probs", "topk", "entropy")
PACKED = ("all_log_probs", "log_probs", "entropy", "topk")
"""In which order the outputs are computed, which is the order that their gradients add up in."""


class LogitOptions(TypedDict, total=False):
    """Which outputs of `logit_outputs` are asked for, beside the log-probs of the labels."""

    topk: int | None
    all_log_probs: bool
    entropy: bool


MODEL_INPUTS = ("input_ids", "attention_mask", "position_ids")


def entropy_from_logits(logits: Tensor) -> Tensor:
    """Entropy of the softmax: `(…, V)` to `(…)`; the softmax first, which orders the gradients."""
    probs = F.softmax(logits, dim=-1)
    return torch.logsumexp(logits, dim=-1) - torch.sum(probs * logits, dim=-1)


def logit_outputs(
    logits: Tensor,
    labels: Tensor,
    topk: int | None = None,
    topk_indices: Tensor | None = None,
    all_log_probs: bool = False,
    entropy: bool = False,
    order: Sequence[str] = PADDED,
) -> dict[str, Tensor]:
    """Log-probs of the labels `(…)`, and what is asked for, from scaled logits `(…, V)`.

    Given `topk_indices` `(…, k)` replace the choice of the largest.
    """
    outputs: dict[str, Tensor] = {}
    for name in order:
        if name == "log_probs":
            outputs[name] = log_probs_from_logits(logits, labels)
        elif name == "topk" and topk is not None:
            values, indices = topk_log_probs(logits, topk, topk_indices)
            outputs.update(topk_log_probs=values, topk_indices=indices)
        elif name == "all_log_probs" and all_log_probs:
            outputs[name] = F.log_softmax(logits, dim=-1)
        elif name == "entropy" and entropy:
            outputs[name] = entropy_from_logits(logits)
    return outputs


def packed_forward(
    module: nn.Module, batch: Batch, temperature: float, topk_indices: Any = None, **options: Any
) -> dict[str, Tensor]:
    """Forward on one sequence of all tokens with attention 1; the rest comes back as zeros.

    No attention mask is given: where the position ids restart, the model has to separate the rows
    (transformers does for a single row without mask and cache). Quirks: the label of a token is the
    next kept token, across holes and rows, and a removed position has log-prob 0 and indices 0. If
    nothing is kept, one token of id 0 goes through the model and its values are dropped.
    """
    rows, length = batch["input_ids"].shape
    width = batch["responses"].size(-1)
    kept = batch["attention_mask"].flatten().nonzero().squeeze(-1)
    ids, positions = (batch[name].flatten()[kept][None] for name in ("input_ids", "position_ids"))
    if not len(kept):
        ids, positions = ids.new_zeros(1, 1), positions.new_zeros(1, 1)
    logits = module(
        input_ids=ids, attention_mask=None, position_ids=positions, use_cache=False
    ).logits.squeeze(0)
    logits.div_(temperature)
    if topk_indices is not None:
        spread = topk_indices.new_zeros(rows, length, topk_indices.size(-1))
        spread[:, -width - 1 : -1] = topk_indices
        topk_indices = spread.flatten(0, 1)[kept]
    labels = torch.roll(ids, shifts=-1, dims=1).squeeze(0)
    outputs = logit_outputs(logits, labels, topk_indices=topk_indices, order=PACKED, **options)
    for name, packed in outputs.items():
        padded = packed.new_zeros(rows * length, *packed.shape[1:])
        padded = padded.index_copy(0, kept, packed[: len(kept)])
        outputs[name] = padded.unflatten(0, (rows, length))[:, -width - 1 : -1]
    return outputs


def forward_micro_batch(
    module: nn.Module,
    batch: Batch,
    temperature: float,
    *,
    remove_padding: bool = False,
    compute_dtype: torch.dtype = torch.float32,
    outputs: Callable[..., dict[str, Tensor]] = logit_outputs,
    **options: Any,
) -> dict[str, Tensor]:
    """Log-probs of the response tokens by `outputs`, with the options of `logit_outputs`.

    Shape: ids, attention mask and position ids `(B, P+T)`, responses `(B, T)`. `log_probs` and
    `entropy` are `(B, T)`, `topk_log_probs` and `topk_indices` `(B, T, k)`, all log-probs with `V`.

    Numerics: below float32 the model call and the log-probs run under autocast. Row `t` of the
    logit slice `[-T-1, -1)` predicts response token `t`.
    """
    autocast, width = compute_dtype != torch.float32, batch["responses"].size(-1)
    with torch.autocast(batch["input_ids"].device.type, dtype=compute_dtype, enabled=autocast):
        if remove_padding:
            return packed_forward(module, batch, temperature, **options)
        logits = module(**{name: batch[name] for name in MODEL_INPUTS}, use_cache=False).logits
        logits.div_(temperature)
        return outputs(logits[:, -width - 1 : -1], batch["responses"], **options)
