"""Entropy bonus and KL anchor: what holds the policy beside the teacher, against collapse.

    total = loss - entropy_coeff · H + kl_loss_coef · K

H is the policy's entropy, K an estimate of KL(policy‖reference policy). Both are aggregated as the
loss is, but over all response tokens, also of rows that no teacher saw.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sdpo.loss.aggregate import aggregate
from sdpo.loss.log_softmax import normalized
from sdpo.loss.support import log_probs
from sdpo.settings.config import SDPOConfig

LARGEST_LOG_RATIO, LARGEST_KL = 20.0, 10.0


class PolicyTerms(NamedTuple):
    """The terms of one micro-batch before their factors, scalars in nats; None for one left out."""

    entropy: Tensor | None = None
    kl_loss: Tensor | None = None

    def added_to(self, loss: Tensor, config: SDPOConfig) -> Tensor:
        """The loss with both terms, times their factors."""
        if self.entropy is not None:
            loss = loss - config.entropy_coeff * self.entropy
        if self.kl_loss is not None:
            loss = loss + config.kl_loss_coef * self.kl_loss
        return loss

    def named(self) -> dict[str, float]:
        """The values of the terms by name, for a log."""
        return {name: value.item() for name, value in self._asdict().items() if value is not None}


def policy_terms(
    student_logits: Tensor,
    responses: Tensor,
    response_mask: Tensor,
    *,
    ref_log_prob: Tensor | None = None,
    config: SDPOConfig,
) -> PolicyTerms:
    """Compute the terms that the settings ask for.

    Args:
        student_logits: `(B, T, V)` before temperature; row `t` predicts response token `t`.
        responses: `(B, T)` int64 token ids.
        response_mask: `(B, T)`, 1 where a response token counts.
        ref_log_prob: `(B, T)` of the responses under the reference policy; needed with
            `use_kl_loss`.
        config: settings of loss and terms; none of them asks for nothing, and nothing is computed.

    Raises:
        ValueError: `use_kl_loss` without `ref_log_prob`.

    Source: `verl/workers/actor/dp_actor.py` 881-898 at 0e6d5106.
    """
    counts, mode = response_mask != 0, config.loss_agg_mode
    entropy = kl_loss = None
    if config.entropy_coeff:
        logits = torch.where(counts.unsqueeze(-1), student_logits, 0.0)
        of_tokens = entropy_of(logits, temperature=config.temperature)
        entropy = aggregate(of_tokens, response_mask, loss_agg_mode=mode)
    if config.use_kl_loss:
        if ref_log_prob is None:
            raise ValueError("use_kl_loss needs ref_log_prob, those of the reference policy")
        side = normalized(student_logits, config.temperature, counts)
        reference = torch.where(counts, ref_log_prob, 0.0)
        of_tokens = low_variance_kl(log_probs(side, responses), reference)
        kl_loss = aggregate(of_tokens, response_mask, loss_agg_mode=mode)
    return PolicyTerms(entropy, kl_loss)


def entropy_of(logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Entropy of the softmax of each token, `(…, V)` to `(…)`, in nats.

    Numerics: an entry of probability zero adds nothing (0 · log 0 = 0), also one whose logit is
    minus infinity, for which the reference computes NaN.

    Source: `verl/utils/torch_functional.py` 224-238 at 0e6d5106.
    """
    scaled = logits if temperature == 1.0 else logits / temperature
    finite = scaled.masked_fill(scaled == -torch.inf, 0.0)
    return scaled.logsumexp(-1) - (scaled.softmax(-1) * finite).sum(-1)


def low_variance_kl(log_probs: Tensor, ref_log_prob: Tensor) -> Tensor:
    """Estimate KL(policy‖reference policy) from one token each, with little variance.

        d = log (p_ref / p),    exp(d) - d - 1

    Numerics: as in the reference, d is limited to ±20 and the estimate to 10; beyond these limits
    no gradient passes.

    Source: `verl/trainer/ppo/core_algos.py` 1998-2004 at 0e6d5106, `low_var_kl`.
    """
    log_ratio = (ref_log_prob - log_probs).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    return (log_ratio.exp() - log_ratio - 1).clamp(-LARGEST_KL, LARGEST_KL)
