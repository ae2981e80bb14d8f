"""Log-probs of some entries, from hidden states, without holding the logits."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from sdpo.fused.lm_head import Projection, detached_rows, logits_of, vocabulary_blocks
from sdpo.fused.vocabulary_scan import normalizers_of

TOKENS_AT_ONCE = 1024
"""Tokens of which a block of logits is held."""


@torch.no_grad()
def token_log_probs(side: Projection, responses: Tensor, temperature: float) -> Tensor:
    """Log-probs `(B, T)` of the response tokens, without holding the logits.

    Args:
        side: hidden states `(B, T, H)` and head; row `t` predicts response token `t`.
        responses: `(B, T)` int64 token ids.
        temperature: divides the logits.
    """
    rows, log_probs = detached_rows(side), []
    pieces = rows.hidden.split(TOKENS_AT_ONCE), responses.flatten().split(TOKENS_AT_ONCE)
    with torch.autocast(responses.device.type, enabled=False):
        for hidden, tokens in zip(*pieces, strict=True):
            logits = _blocks_of_logits(rows._replace(hidden=hidden), temperature)
            log_probs.append(log_probs_at(tokens.unsqueeze(-1), logits))
    return torch.cat(log_probs).view(responses.shape)


def _blocks_of_logits(side: Projection, temperature: float) -> Iterator[tuple[slice, Tensor]]:
    for part in vocabulary_blocks(side):
        yield part, logits_of(side, part, temperature)


def log_probs_at(indices: Tensor, blocks_of_logits: Iterable[tuple[slice, Tensor]]) -> Tensor:
    """Log-probs of the entries at `indices` `(N, K)`, from logits that come block by block.

    Args:
        indices: of the vocabulary.
        blocks_of_logits: parts of the vocabulary, in order, and their logits `(N, width)`.
    """
    entries, normalizers = 0.0, []
    for part, logits in blocks_of_logits:
        inside = (indices >= part.start) & (indices < part.stop)
        within_part = (indices - part.start).clamp(0, logits.shape[-1] - 1)
        entries = torch.where(inside, logits.gather(-1, within_part), entries)
        normalizers.append(normalizers_of(logits))
        del logits  # before the next block is made
    return entries - torch.cat(normalizers, -1).logsumexp(-1, keepdim=True)
