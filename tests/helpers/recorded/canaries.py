"""Canaries: the arithmetic of recorded cases in plain torch, to see whose bits this machine gives.

torch takes its products and exponentials from MKL, which has other kernels for other makes of
processors, for the settings of its environment, and for products of other shapes; what torch adds
itself depends on its vector instructions. A name or a model of a processor does not tell. So the
same formulas are evaluated without the code under test and compared with the recording: where they
give its bits, the code must give them too.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.helpers.measured import gives_bits
from tests.helpers.recorded.loss_cases import case, recorded


def plain_loss(logits: Tensor, teacher_logits: Tensor, inputs: Any) -> dict[str, Tensor]:
    """Recorded values of a loss case by the formulas of the golden data's README, section 1."""
    c, found = inputs.config, {}
    sides = {"student": logits / c.temperature, "teacher": teacher_logits / c.temperature}
    for side, z in sides.items():
        found[f"{side}_log_probs"] = label_log_probs(z, inputs.responses)
    if not c.full_logit_distillation:
        own, other = found["student_log_probs"], found["teacher_log_probs"]
        kl = (own - other).detach() * own
    else:
        s, t = on_support(sides, c, found)
        kl = plain_divergence(s, t, c.alpha).sum(-1)
    if c.is_clip is not None:
        ratio = (found["student_log_probs"] - inputs.old_log_probs).detach().clamp(-20, 20).exp()
        kl = kl * ratio.clamp(max=c.is_clip)
    if inputs.rollout_is_weights is not None:
        kl = kl * inputs.rollout_is_weights
    return found | {"per_token_loss": kl, "loss": total(kl, inputs)}


def total(kl: Tensor, inputs: Any) -> Tensor:
    """The loss of a micro-batch from its per-token losses."""
    mask, mode = inputs.response_mask, inputs.config.loss_agg_mode
    if inputs.self_distillation_mask is not None:
        mask = mask * inputs.self_distillation_mask.unsqueeze(1)
    if mode == "token-mean":
        counted = torch.where(mask != 0, kl, torch.zeros_like(kl))
        return (counted * mask).sum() / mask.sum().clamp(min=1.0)
    rows, tokens = (kl * mask).sum(-1), mask.sum(-1)
    if mode == "seq-mean-token-sum-norm":
        return rows.sum() / mask.shape[-1]
    rows = rows / (tokens + 1e-8) if mode == "seq-mean-token-mean" else rows
    kept = (tokens > 0).float()
    return (torch.where(tokens > 0, rows, torch.zeros_like(rows)) * kept).sum() / kept.sum()


def label_log_probs(z: Tensor, labels: Tensor) -> Tensor:
    """Log-probs of the labels; half precision by log_softmax, others by the log of the sum."""
    labels = labels.unsqueeze(-1)
    if z.dtype == torch.bfloat16:
        return torch.stack([row.log_softmax(-1) for row in z]).gather(-1, labels).squeeze(-1)
    return z.gather(-1, labels).squeeze(-1) - torch.stack([row.logsumexp(-1) for row in z])


def on_support(sides: dict[str, Tensor], c: Any, found: dict[str, Tensor]) -> list[Tensor]:
    """Both sides on the entries that are compared; the recorded ones are added to `found`."""
    if c.distillation_topk is None:
        values = [z.log_softmax(-1) for z in sides.values()]
        found |= {f"{side}_all_log_probs": v for side, v in zip(sides, values, strict=True)}
        return values
    size = min(c.distillation_topk, sides["student"].shape[-1])
    chosen = sides["student"].topk(size, dim=-1).indices
    found["student_topk_indices"] = chosen
    supported = []
    for side, z in sides.items():
        kept = z.gather(-1, chosen) - z.logsumexp(-1, keepdim=True)
        found[f"{side}_topk_log_probs"] = kept
        mass = kept.logsumexp(-1, keepdim=True)
        tail = (-mass.clamp(max=-1e-7).expm1()).log()
        whole = torch.cat([kept, tail], -1) if c.distillation_add_tail else kept - mass
        supported.append(whole)
    return supported


def plain_divergence(s: Tensor, t: Tensor, alpha: float) -> Tensor:
    """Terms of the divergence of each entry."""
    terms = functools.partial(F.kl_div, reduction="none", log_target=True)
    if alpha in (0.0, 1.0):
        return terms(s, t) if alpha == 0.0 else terms(t, s)
    a = torch.tensor(alpha, dtype=s.dtype)
    m = torch.stack([s + (1 - a).log(), t + a.log()]).logsumexp(0)
    u, v = terms(m, s), terms(m, t)
    return torch.lerp(u, v, a)


@functools.cache
def loss_has_recorded_bits(case_id: str) -> bool:
    """Whether plain torch gives the recorded bits of a loss case here, gradient included."""
    inputs = case(case_id)
    leaf = inputs.student_logits.clone().requires_grad_()
    values = plain_loss(leaf, inputs.teacher_logits, inputs)
    (values["grad_student_logits"],) = torch.autograd.grad(values["loss"], leaf)
    canary = {f"out.{name}": value.detach() for name, value in values.items()}
    return gives_bits(canary, recorded(case_id))
