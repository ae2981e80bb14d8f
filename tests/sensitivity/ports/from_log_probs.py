"""A port of the loss from log-probs, settings one by one under other names."""

from math import log

import torch


def complete(x, add_tail):
    if not add_tail:
        return x - x.logsumexp(-1, keepdim=True)
    mass = x.logsumexp(-1, keepdim=True).clamp_max(-1e-7)
    return torch.cat((x, torch.log(-torch.special.expm1(mass))), -1)


def loss(
    *,
    student_log_probs,
    teacher_log_probs,
    response_mask,
    old_log_probs=None,
    student_topk_log_probs=None,
    teacher_topk_log_probs=None,
    student_all_log_probs=None,
    teacher_all_log_probs=None,
    self_distillation_mask=None,
    rollout_is_weights=None,
    alpha=0.5,
    topk=100,
    add_tail=True,
    clip=None,
    agg_mode="token-mean",
    full_logit=True,
):
    mask = response_mask.to(torch.float32)
    if self_distillation_mask is not None:
        mask = torch.einsum("bt,b->bt", mask, self_distillation_mask.float())
    if full_logit:
        s, t = student_all_log_probs, teacher_all_log_probs
        if topk is not None:
            s = complete(student_topk_log_probs, add_tail)
            t = complete(teacher_topk_log_probs, add_tail)
        if alpha in (0, 1):
            x, y = (s, t) if alpha == 1 else (t, s)
            tok = ((x - y) * x.exp()).sum(-1)
        else:
            m = torch.logaddexp(s + log(1 - alpha), t + log(alpha))
            tok = ((1 - alpha) * s.exp() * (s - m) + alpha * t.exp() * (t - m)).sum(-1)
    else:
        adv = (teacher_log_probs - student_log_probs).detach()
        tok = -adv * student_log_probs
    if clip is not None:
        lr = (student_log_probs.detach() - old_log_probs).clip(-20, 20)
        tok = tok * torch.minimum(lr.exp(), torch.full_like(lr, clip))
    if rollout_is_weights is not None:
        tok = tok * rollout_is_weights
    tok = torch.where(mask > 0, tok, 0)
    ntok = mask.sum(1)
    nseq = (ntok > 0).sum().clamp(min=1)
    if agg_mode == "token-mean":
        return tok.sum() / ntok.sum().clamp(min=1)
    if agg_mode == "seq-mean-token-sum":
        return tok.sum() / nseq
    if agg_mode == "seq-mean-token-mean":
        return (tok.sum(1) / ntok.clamp(min=1)).sum() / nseq
    return tok.sum() / mask.size(1)
