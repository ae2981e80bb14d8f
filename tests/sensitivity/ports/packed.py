"""A port on packed tokens, in chunks, as a module that returns the loss and metrics."""

import torch
from torch import nn

CHUNK = 5


def upcast(x):
    return x if x.dtype == torch.float64 else x.float()


class Loss(nn.Module):
    def forward(
        self,
        student_logits,
        teacher_logits,
        responses,
        response_mask,
        old_log_probs=None,
        self_distillation_mask=None,
        rollout_is_weights=None,
        config=None,
    ):
        keep = response_mask != 0
        if self_distillation_mask is not None:
            keep = keep & (self_distillation_mask != 0).unsqueeze(1)
        rows = keep.nonzero()[:, 0]
        student, teacher = student_logits[keep], teacher_logits[keep].detach()
        if len(student) == 0:
            return student.sum(), {"tokens": 0}
        given = [responses, old_log_probs, rollout_is_weights]
        given = [None if t is None else t[keep].split(CHUNK) for t in given]
        values = []
        for i, (a, b) in enumerate(zip(student.split(CHUNK), teacher.split(CHUNK), strict=True)):
            values.append(self.tokens(a, b, *(None if g is None else g[i] for g in given), config))
        values = torch.cat(values)
        count = torch.bincount(rows, minlength=len(response_mask))
        sums = torch.zeros(len(response_mask), dtype=values.dtype).index_add(0, rows, values)
        some, mode = count > 0, config.loss_agg_mode
        if mode == "token-mean":
            loss = values.mean()
        elif mode == "seq-mean-token-sum":
            loss = sums[some].mean()
        elif mode == "seq-mean-token-mean":
            loss = (sums[some] / count[some]).mean()
        else:
            loss = sums.sum() / response_mask.shape[1]
        return loss, {"tokens": len(values)}

    def tokens(self, student, teacher, ids, old, weights, config):
        a, b = upcast(student / config.temperature), upcast(teacher / config.temperature)
        log_a, log_b = torch.log_softmax(a, -1), torch.log_softmax(b, -1)
        at = torch.arange(len(ids))
        own = log_a[at, ids]
        if not config.full_logit_distillation:
            value = own * (own - log_b[at, ids]).detach()
        else:
            value = self.distance(a, log_a, log_b, config)
        if config.is_clip is not None:
            log_ratio = (own - old).detach().clamp(-20, 20)
            value = value * log_ratio.exp().clamp_max(config.is_clip)
        return value if weights is None else value * weights

    def distance(self, a, log_a, log_b, config):
        if config.distillation_topk is not None:
            k = min(config.distillation_topk, a.shape[-1])
            places = a.topk(k, dim=-1)[1]
            log_a, log_b = log_a.gather(1, places), log_b.gather(1, places)
            if config.distillation_add_tail:
                log_a, log_b = self.closed(log_a), self.closed(log_b)
            else:
                log_a, log_b = torch.log_softmax(log_a, -1), torch.log_softmax(log_b, -1)
        p, q, alpha = log_a.exp(), log_b.exp(), config.alpha
        if alpha == 0.0:
            return (q * (log_b - log_a)).sum(1)
        if alpha == 1.0:
            return (p * (log_a - log_b)).sum(1)
        share = torch.tensor(alpha, dtype=p.dtype)
        middle = torch.logaddexp(log_a + torch.log1p(-share), log_b + torch.log(share))
        own, other = (p * (log_a - middle)).sum(1), (q * (log_b - middle)).sum(1)
        return (1 - alpha) * own + alpha * other

    def closed(self, log_x):
        inside = log_x.logsumexp(-1, keepdim=True).clamp(max=-1e-7)
        return torch.cat([log_x, inside.expm1().neg().log()], -1)


loss = Loss()
