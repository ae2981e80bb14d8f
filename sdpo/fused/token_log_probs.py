"""Log-probs of some entries, from hidden states, without holding the logits."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from torch import Tensor

from sdpo.fused.lm_head import Projection, blocks, computing_dtype, flat, logits_of, vocabulary
from sdpo.fused.vocabulary_scan import (
    has_kernels,
    reference_of,
    sum_of_exponentials,
    survey,
    within_reach,
)

TOKENS_AT_ONCE = 1024
"""Of log-probs alone, of which only blocks are held."""


def entries_of(
    logits_by_block: Callable[[], Iterable[tuple[slice, Tensor]]],
    indices: Tensor,
    width: int,
    dtype: torch.dtype,
) -> Tensor:
    """Log-probs `(N, K)` of some entries, from logits whose blocks come one after the other.

    The blocks are overwritten. On a CPU only the first is searched for the largest logit of each
    token; all are asked for again if exponentials relative to that are too large or too small.
    """
    found, trusted = taken(logits_by_block(), indices, width, dtype, search_all=indices.is_cuda)
    if not trusted:
        found, _ = taken(logits_by_block(), indices, width, dtype, search_all=True)
    return found


def taken(
    logits_by_block: Iterable[tuple[slice, Tensor]],
    indices: Tensor,
    width: int,
    dtype: torch.dtype,
    *,
    search_all: bool,
) -> tuple[Tensor, bool]:
    """Log-probs of some entries `(N, K)`, and whether the references were near enough."""
    # results go to tensors made before: small ones between large ones would fragment the heap
    entries = torch.zeros(indices.shape, dtype=dtype, device=indices.device)
    normalizers = entries.new_empty(len(indices), len([*blocks(width, indices.device)]))
    reference = None
    for number, (part, logits) in enumerate(logits_by_block):
        inside = (indices >= part.start) & (indices < part.stop)
        near = (indices - part.start).clamp(0, logits.shape[-1] - 1)
        entries.copy_(torch.where(inside, logits.gather(-1, near), entries))
        if has_kernels(logits):
            normalizers[:, number : number + 1] = survey(logits)[0]
        else:
            if reference is None or search_all:
                reference = reference_of(logits.amax(-1, keepdim=True))
            found = sum_of_exponentials(logits, reference).log_().add_(reference)
            normalizers[:, number : number + 1] = found
        del logits
    whole = normalizers.logsumexp(-1, keepdim=True)
    trusted = search_all or reference is None or within_reach(whole, reference)
    return entries - whole, trusted


@torch.no_grad()
def token_log_probs(side: Projection, responses: Tensor, temperature: float) -> Tensor:
    """Log-probs `(B, T)` of the response tokens, without holding the logits.

    Args:
        side: hidden states `(B, T, H)` and head; row `t` predicts response token `t`.
        responses: `(B, T)` int64 token ids.
        temperature: divides the logits.
    """
    whole, width = flat(side), len(side.head.weight)
    dtype, found = computing_dtype(whole.hidden, whole.head.weight), []
    rows = whole.hidden.split(TOKENS_AT_ONCE), responses.flatten().split(TOKENS_AT_ONCE)
    with torch.autocast(responses.device.type, enabled=False):
        for hidden, tokens in zip(*rows, strict=True):
            some = whole._replace(hidden=hidden)
            parts = partial(logits_by_block, some, temperature)
            found.append(entries_of(parts, tokens.unsqueeze(-1), width, dtype))
    return torch.cat(found).view(responses.shape)


def logits_by_block(side: Projection, temperature: float) -> Iterator[tuple[slice, Tensor]]:
    """A side's logits over temperature, a block of the vocabulary at a time."""
    for part in vocabulary(side):
        yield part, logits_of(side, part, temperature)
