"""Log-probs of some entries, from hidden states, without holding the logits."""

from collections.abc import Iterable

import torch
from torch import Tensor

from sdpo.heads import Projection, blocks, computing_dtype, flat, logits_of, vocabulary
from sdpo.vocabulary import normalizers_of

TOKENS_AT_ONCE = 1024
"""Of log-probs alone, of which only blocks are held."""


def entries_of(
    logits_by_block: Iterable[tuple[slice, Tensor]], indices: Tensor, width: int, dtype: torch.dtype
) -> Tensor:
    """Log-probs `(N, K)` of some entries, from logits whose blocks come one after the other.

    The blocks are overwritten.
    """
    # results go to tensors made before: small ones between large ones would fragment the heap
    entries = torch.zeros(indices.shape, dtype=dtype, device=indices.device)
    normalizers = entries.new_empty(len(indices), len([*blocks(width, indices.device)]))
    for number, (part, logits) in enumerate(logits_by_block):
        inside = (indices >= part.start) & (indices < part.stop)
        near = (indices - part.start).clamp(0, logits.shape[-1] - 1)
        entries.copy_(torch.where(inside, logits.gather(-1, near), entries))
        normalizers[:, number : number + 1] = normalizers_of(logits)
        del logits
    return entries - normalizers.logsumexp(-1, keepdim=True)


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
            parts = ((part, logits_of(some, part, temperature)) for part in vocabulary(some))
            found.append(entries_of(parts, tokens.unsqueeze(-1), width, dtype))
    return torch.cat(found).view(responses.shape)
