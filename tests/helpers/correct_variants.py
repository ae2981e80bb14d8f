"""Correct evaluations of the loss that differ in order and form: none of them may be blamed.

Each exchanges parts of the reference (`sdpo.parity.faults.reference_parts`) for equivalent ones.
They fix `loss_roundings`, the constant of the loss's budgets: see `test_budget.py`.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sdpo.parity.cases.loss_case import LossCase
from sdpo.parity.faults.reference_parts import (
    LossPart,
    LossState,
    Pair,
    aggregate,
    importance_ratio,
)

Sum = Callable[[Tensor], Tensor]


def in_order(values: Tensor) -> Tensor:
    """Sum over the last axis, one term after the other."""
    total = torch.zeros_like(values[..., 0])
    for term in values.unbind(-1):
        total = total + term
    return total


def pairwise(values: Tensor) -> Tensor:
    """Sum over the last axis by halves."""
    while values.shape[-1] > 1:
        if values.shape[-1] % 2:
            values = torch.cat([values, torch.zeros_like(values[..., :1])], dim=-1)
        values = values[..., 0::2] + values[..., 1::2]
    return values[..., 0]


def backwards(values: Tensor) -> Tensor:
    """Sum over the last axis from its end."""
    return in_order(values.flip(-1))


def chunked(values: Tensor) -> Tensor:
    """Sum over the last axis in chunks of seven."""
    return torch.stack([part.sum(-1) for part in values.split(7, dim=-1)], dim=-1).sum(-1)


def einsum(values: Tensor) -> Tensor:
    """Sum over the last axis as a product with ones."""
    return torch.einsum("...s,s->...", values, torch.ones_like(values[(0,) * (values.dim() - 1)]))


def log_normalizer(logits: Tensor, total: Sum) -> Tensor:
    """Log of the sum of exponentials."""
    top = logits.detach().max(-1, keepdim=True).values
    top = torch.where(top.isfinite(), top, 0.0)
    return top + torch.log(total(torch.exp(logits - top)).unsqueeze(-1))


def plain_tail(log_probs: Tensor, total: Sum) -> Tensor:
    """The tail from the clamped log mass, by log1p(-exp)."""
    log_mass = log_normalizer(log_probs, total).clamp(max=-1e-7)
    return torch.cat([log_probs, torch.log1p(-torch.exp(log_mass))], dim=-1)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """The terms of KL(p‖q)."""
    return p.exp() * (p - q)


def summed(total: Sum) -> dict[str, LossPart]:
    """Every sum over vocabulary or support in another order; explicit terms for F.kl_div."""

    def log_probs(state: LossState) -> Pair:
        at = state.responses.unsqueeze(-1)
        student, teacher = (
            (z.gather(-1, at) - log_normalizer(z, total)).squeeze(-1)
            for z in (state.scaled_student, state.scaled_teacher)
        )
        return student, teacher

    def support(state: LossState) -> Pair:
        sides = [z - log_normalizer(z, total) for z in (state.scaled_student, state.scaled_teacher)]
        if state.uses_topk:
            sides = [side.gather(-1, state.support_indices) for side in sides]
        return sides[0], sides[1]

    def tail(state: LossState) -> Pair:
        def complete(side: Tensor) -> Tensor:
            if state.config.distillation_add_tail:
                log_mass = log_normalizer(side, total).clamp(max=-1e-7)
                return torch.cat([side, torch.log(-torch.expm1(log_mass))], dim=-1)
            return side - log_normalizer(side, total)

        return complete(state.student_support), complete(state.teacher_support)

    return {
        "log_probs": log_probs,
        "support": support,
        "tail": tail,
        "divergence": lambda state: total(terms(state)),
    }


def terms(state: LossState) -> Tensor:
    """The terms of the divergence, with logaddexp for the mixture."""
    student, teacher, alpha = state.student_support, state.teacher_support, state.config.alpha
    if alpha == 0.0:
        return kl(teacher, student)
    if alpha == 1.0:
        return kl(student, teacher)
    weight = torch.tensor(alpha, dtype=student.dtype)
    mixture = torch.logaddexp(student + torch.log1p(-weight), teacher + torch.log(weight))
    return (1 - weight) * kl(student, mixture) + weight * kl(teacher, mixture)


def wide(state: LossState) -> Tensor:
    """The divergence computed in float64 and rounded once."""
    kept = state.student_support, state.teacher_support
    state.student_support, state.teacher_support = kept[0].double(), kept[1].double()
    value = terms(state).sum(-1).to(kept[0].dtype)
    state.student_support, state.teacher_support = kept
    return value


def by_log_softmax(state: LossState) -> Pair:
    """Sampled log-probs by log_softmax and gather."""
    at = state.responses.unsqueeze(-1)
    return (
        state.scaled_student.log_softmax(-1).gather(-1, at).squeeze(-1),
        state.scaled_teacher.log_softmax(-1).gather(-1, at).squeeze(-1),
    )


def support_by_log_softmax(state: LossState) -> Pair:
    """Support by log_softmax and gather."""
    student, teacher = state.scaled_student.log_softmax(-1), state.scaled_teacher.log_softmax(-1)
    if not state.uses_topk:
        return student, teacher
    return student.gather(-1, state.support_indices), teacher.gather(-1, state.support_indices)


def tail_by_log1p(state: LossState) -> Pair:
    """The tail by log1p of minus the mass."""
    if state.config.distillation_add_tail:
        return plain_tail(state.student_support, pairwise), plain_tail(
            state.teacher_support, pairwise
        )
    return state.student_support.log_softmax(-1), state.teacher_support.log_softmax(-1)


def in_probabilities(state: LossState) -> Tensor:
    """The mixture form on probabilities; zero terms are left out."""
    p, q, alpha = state.student_support.exp(), state.teacher_support.exp(), state.config.alpha
    if alpha in (0.0, 1.0):
        return terms(state).sum(-1)
    m = (1 - alpha) * p + alpha * q
    middle = torch.where(m > 0, m, 1.0).log()
    own, other = p * (state.student_support - middle), q * (state.teacher_support - middle)
    return ((1 - alpha) * own + alpha * other).sum(-1)


def upcast(state: LossState) -> Pair:
    """Everything from the logits on in float64."""
    temperature = state.config.temperature
    teacher = state.teacher_logits.detach().double()
    return state.student_logits.double() / temperature, teacher / temperature


def centred(state: LossState) -> Pair:
    """Logits moved so that the largest is 0."""
    sides = []
    for logits in (state.student_logits, state.teacher_logits.detach()):
        top = logits.detach().max(-1, keepdim=True).values
        top = torch.where(top.isfinite(), top, 0.0)
        sides.append((logits - top) / state.config.temperature)
    return sides[0], sides[1]


def by_index(state: LossState) -> Tensor:
    """Only the tokens that count are gathered, row by row."""
    counts, mode = state.loss_mask != 0, state.config.loss_agg_mode
    rows = [row[here] for row, here in zip(state.token_losses, counts, strict=True) if here.any()]
    if not rows:
        return aggregate(state)
    if mode == "token-mean":
        return state.token_losses[counts].mean()
    if mode == "seq-mean-token-sum-norm":
        return torch.stack([row.sum() for row in rows]).sum() / state.loss_mask.shape[1]
    sums = [row.sum() if mode == "seq-mean-token-sum" else row.mean() for row in rows]
    return torch.stack(sums).mean()


def ratio_by_division(state: LossState) -> Tensor:
    """The ratio as exp of each side, where neither is small."""
    assert state.old_log_probs is not None
    gap = (state.student_log_probs - state.old_log_probs).detach()
    if bool((gap.abs() > 20).any() or (state.student_log_probs < -20).any()):
        return importance_ratio(state)
    own = state.student_log_probs.detach().exp() / state.old_log_probs.to(gap.dtype).exp()
    return own.clamp(max=state.config.is_clip)


def applies(name: str, case: LossCase) -> bool:
    """Whether a variant is a correct evaluation of a case.

    1 - exp loses the tail where it is near its limit (the catalogue's M06 in another guise), and in
    half precision altogether; centring rounds such logits, which may change the choice of top-k.
    Half precision is accumulated in float32: one after the other, many terms no longer add
    up in it. Under autocast a product is rounded to bfloat16. Probabilities of float16 underflow
    before their ratio does.
    """
    if name == RATIO_BY_DIVISION and case.dtype == torch.float16:
        return False
    if name == EINSUM and case.call.autocast:
        return False
    if name in ONE_BY_ONE and case.student_logits.shape[-1] > LONG:
        return case.coarsest_dtype not in HALF
    if name == TAIL_BY_LOG1P:
        return case.coarsest_dtype not in HALF and not SMALL_TAILS & set(case.tags)
    return name != CENTRED or case.coarsest_dtype not in HALF


HALF = (torch.bfloat16, torch.float16)
TAIL_BY_LOG1P, CENTRED, EINSUM = "tail by log1p", "logits centred", "sums by einsum"
RATIO_BY_DIVISION = "ratio by division"
ONE_BY_ONE = ("sums in order", "sums from the end")
LONG = 48
SMALL_TAILS = {
    "near_one_hot",
    "peaked_tail_near_clamp",
    "k_equals_vocab",
    "k_above_vocab",
    "huge_logits",
}

VARIANTS: Mapping[str, Mapping[str, LossPart]] = {
    "sums in order": summed(in_order),
    "sums by halves": summed(pairwise),
    "sums from the end": summed(backwards),
    "sums in chunks": summed(chunked),
    EINSUM: summed(einsum),
    "explicit terms and logaddexp": {"divergence": lambda state: terms(state).sum(-1)},
    "divergence in float64": {"divergence": wide},
    "log_softmax and gather": {"log_probs": by_log_softmax, "support": support_by_log_softmax},
    TAIL_BY_LOG1P: {"tail": tail_by_log1p},
    "mixture of probabilities": {"divergence": in_probabilities},
    "everything in float64": {"scaled_logits": upcast},
    CENTRED: {"scaled_logits": centred},
    "tokens gathered by index": {"aggregate": by_index},
    RATIO_BY_DIVISION: {"importance_ratio": ratio_by_division},
}
