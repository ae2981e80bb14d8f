"""What a case asks for, in the shapes that other packages take it in."""

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from sdpo.reference.loss import agg_loss
from sdpo.settings.config import SDPOConfig

IGNORED = -100
"""Label of a token that does not count."""

_ASKS: dict[str, Callable[[SDPOConfig], bool]] = {
    "sampled tokens": lambda c: not c.full_logit_distillation,
    "full vocabulary": lambda c: c.full_logit_distillation and c.distillation_topk is None,
    "top-k": lambda c: c.full_logit_distillation and c.distillation_topk is not None,
    "tail": lambda c: (
        c.full_logit_distillation and c.distillation_topk is not None and c.distillation_add_tail
    ),
    "renormalised top-k": lambda c: (
        c.full_logit_distillation
        and c.distillation_topk is not None
        and not c.distillation_add_tail
    ),
    "ratio": lambda c: c.is_clip is not None,
    "other means": lambda c: c.loss_agg_mode != "token-mean",
    "temperature": lambda c: c.temperature != 1.0,
    "alpha other than 0": lambda c: c.alpha != 0.0,
    "alpha other than 1": lambda c: c.alpha != 1.0,
    "top-k with alpha 0 or 1": lambda c: c.full_logit_distillation and c.alpha in (0.0, 1.0),
}


def refuse(config: SDPOConfig, lacks: Collection[str]) -> None:
    """Refuse settings that a package has not.

    Raises:
        NotImplementedError: naming the first of them that these settings ask for.
    """
    for feature in lacks:
        if _ASKS[feature](config):
            raise NotImplementedError(f"has no {feature}")


def refuse_wide_topk(config: SDPOConfig, logits: Tensor) -> None:
    """Refuse a top-k of more entries than there are, which the reference cuts off.

    Raises:
        NotImplementedError: K is above the vocabulary.
    """
    if (config.distillation_topk or 0) > logits.shape[-1]:
        raise NotImplementedError("has no K above the vocabulary")


def refuse_as_product(*logits: Tensor) -> None:
    """Refuse logits that no product of hidden states and a head gives.

    Raises:
        NotImplementedError: one of them is not finite, or autocast would round the product.
    """
    if torch.is_autocast_enabled("cpu"):
        raise NotImplementedError("takes hidden states, whose logits autocast rounds")
    if not all(bool(side.isfinite().all()) for side in logits):
        raise NotImplementedError("takes hidden states, whose logits are finite")


def counted(response_mask: Tensor, self_distillation_mask: Tensor | None) -> Tensor:
    """Which tokens count: `(B, T)` mask times `(B,)` mask, in the first one's dtype."""
    if self_distillation_mask is None:
        return response_mask
    return response_mask * self_distillation_mask.unsqueeze(1).to(response_mask.dtype)


def labels_of(responses: Tensor, response_mask: Tensor, rows: Tensor | None) -> Tensor:
    """Token ids `(B, T)`, with -100 where a token does not count."""
    return responses.masked_fill(counted(response_mask, rows) == 0, IGNORED)


def mean_of(per_token: Tensor, mask: Tensor, loss_agg_mode: str = "token-mean") -> Tensor:
    """The reference's mean, for packages whose function gives the loss of each token `(B, T)`."""
    return agg_loss(per_token, mask, loss_agg_mode, mask.sum().clamp(min=1))


def token_log_probs(logits: Tensor, responses: Tensor) -> Tensor:
    """Log-probs of the sampled tokens, `(B, T)`."""
    return logits.log_softmax(-1).gather(-1, responses.unsqueeze(-1)).squeeze(-1)


def identity_head(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Logits `(B, T, V)` as hidden states `(B * T, V)` and a head `(V, V)` that gives them."""
    vocabulary = logits.shape[-1]
    head = torch.eye(vocabulary, dtype=logits.dtype, device=logits.device)
    return logits.reshape(-1, vocabulary), head
