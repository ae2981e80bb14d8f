"""A port with separate keyword arguments, products by einsum, as a callable object."""

import math

import torch


def logsumexp(x):
    top = x.detach().amax(-1, keepdim=True)
    top = torch.where(torch.isfinite(top), top, torch.zeros_like(top))
    return (x - top).exp().sum(-1, keepdim=True).log() + top


def log1mexp(x):
    return torch.where(x > -math.log(2.0), torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))


def with_tail(x):
    mass = torch.minimum(logsumexp(x), torch.tensor(-1e-7, dtype=x.dtype))
    return torch.cat([x, log1mexp(mass)], -1)


def kl(logp, logq):
    return torch.einsum("btk,btk->bt", logp.exp(), logp - logq)


class Loss:
    def __call__(
        self,
        student_logits,
        teacher_logits,
        responses,
        response_mask,
        old_log_probs=None,
        self_distillation_mask=None,
        rollout_is_weights=None,
        *,
        alpha=0.5,
        topk=100,
        add_tail=True,
        full_logit_distillation=True,
        is_clip=None,
        loss_agg_mode="token-mean",
        temperature=1.0,
    ):
        x = student_logits * (1.0 / temperature)
        y = teacher_logits.detach() * (1.0 / temperature)
        p, q = x - logsumexp(x), y - logsumexp(y)
        logp = torch.take_along_dim(p, responses[..., None], -1)[..., 0]
        logq = torch.take_along_dim(q, responses[..., None], -1)[..., 0]
        if full_logit_distillation:
            if topk is not None:
                idx = torch.argsort(x, dim=-1, descending=True, stable=True)[..., :topk]
                p, q = p.gather(-1, idx), q.gather(-1, idx)
                if add_tail:
                    p, q = with_tail(p), with_tail(q)
                else:
                    p, q = p - logsumexp(p), q - logsumexp(q)
            if alpha == 0.0:
                d = kl(q, p)
            elif alpha == 1.0:
                d = kl(p, q)
            else:
                m = torch.logaddexp(p + math.log1p(-alpha), q + math.log(alpha))
                d = (1 - alpha) * kl(p, m) + alpha * kl(q, m)
        else:
            d = logp * (logp.detach() - logq)
        w = torch.ones_like(d)
        if is_clip is not None:
            ratio = (logp.detach() - old_log_probs).clip(-20, 20).exp()
            w = w * torch.minimum(ratio, torch.tensor(is_clip))
        if rollout_is_weights is not None:
            w = w * rollout_is_weights
        counted = response_mask.bool()
        if self_distillation_mask is not None:
            counted = counted & (self_distillation_mask > 0)[:, None]
        n = counted.sum(-1)
        d = (d * w).masked_fill(~counted, 0.0)
        rows = (n > 0).sum().clamp(min=1)
        if loss_agg_mode == "token-mean":
            return d.sum() / n.sum().clamp(min=1)
        if loss_agg_mode == "seq-mean-token-sum":
            return d.sum(-1).sum() / rows
        if loss_agg_mode == "seq-mean-token-mean":
            return (d.sum(-1) / n.clamp(min=1)).sum() / rows
        return d.sum() / counted.shape[-1]


loss = Loss()
