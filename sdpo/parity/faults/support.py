"""Faults of the stage `support`: which entries of the vocabulary are compared."""

import torch
from torch import Tensor

from sdpo.parity.faults.reference_parts import FaultParts, LossPart, LossState, Pair, support
from sdpo.reference.loss import renormalize, topk_log_probs

_MOST_ENTRIES = 64


def teachers_choice(state: LossState) -> Tensor:
    """Choose the teacher's top-k."""
    return topk_log_probs(state.scaled_teacher, state.support_size)[1]


def with_k_changed(change: int) -> LossPart:
    """Choose the student's top-k with K changed by `change`."""

    def choose(state: LossState) -> Tensor:
        size = min(max(state.support_size + change, 1), state.scaled_student.size(-1))
        return topk_log_probs(state.scaled_student, size)[1]

    return choose


def _whole_vocabulary(state: LossState) -> Tensor:
    """Choose the whole vocabulary, in the student's order."""
    return topk_log_probs(state.scaled_student, state.scaled_student.size(-1))[1]


def _with_sampled_token(state: LossState) -> Tensor:
    """Choose the student's top-k, the sampled token always among them."""
    sampled = state.responses.unsqueeze(-1)
    raised = state.scaled_student.detach().scatter(-1, sampled, torch.inf)
    return topk_log_probs(raised, state.support_size)[1]


def _of_both_sides_sum(state: LossState) -> Tensor:
    """Choose the top-k of the sum of both sides' logits."""
    total = state.scaled_student.detach() + state.scaled_teacher
    return topk_log_probs(total, state.support_size)[1]


def _least_likely(state: LossState) -> Tensor:
    """Choose the K entries that the student holds least likely."""
    return topk_log_probs(-state.scaled_student.detach(), state.support_size)[1]


def _never_whole_vocabulary(state: LossState) -> Tensor:
    """Choose the student's top-k, one entry short where K reaches the vocabulary."""
    size = min(state.support_size, state.scaled_student.size(-1) - 1)
    return topk_log_probs(state.scaled_student, size)[1]


def _each_sides_own(state: LossState) -> Pair:
    """Take each side's log-probs on its own top-k."""
    student, teacher = support(state)
    if state.uses_topk:
        teacher = topk_log_probs(state.scaled_teacher, state.support_size)[0]
    return student, teacher


def _on_union(state: LossState) -> Pair:
    """Give entries that are in neither side's top-k a negligible probability."""
    student, teacher = support(state)
    if not state.uses_topk:
        return student, teacher
    in_union = torch.zeros_like(state.scaled_student, dtype=torch.bool)
    for logits in (state.scaled_student, state.scaled_teacher):
        in_union = in_union.scatter(-1, logits.topk(state.support_size, dim=-1).indices, True)
    left_out = ~in_union.gather(-1, state.support_indices)
    return student.masked_fill(left_out, -1e4), teacher.masked_fill(left_out, -1e4)


def _normalised_over_support(state: LossState) -> Pair:
    """Take log-softmax over the K entries instead of the vocabulary."""
    student, teacher = support(state)
    return (renormalize(student), renormalize(teacher)) if state.uses_topk else (student, teacher)


def without_temperature(state: LossState) -> Pair:
    """Take the support's log-probs from logits before temperature."""
    scaled = state.scaled_student, state.scaled_teacher
    state.scaled_student, state.scaled_teacher = state.student_logits, state.teacher_logits.detach()
    unscaled = support(state)
    state.scaled_student, state.scaled_teacher = scaled
    return unscaled


def _tempered_after_the_choice(state: LossState) -> Pair:
    """Choose by plain log-probs, then temper those of the support alone."""
    if not state.uses_topk:
        return support(state)
    temperature = state.config.temperature
    student, teacher = without_temperature(state)
    if temperature == 1.0:
        return student, teacher
    return renormalize(student / temperature), renormalize(teacher / temperature)


def _capped_k(state: LossState) -> Tensor:
    """Choose no more than so many entries."""
    return topk_log_probs(state.scaled_student, min(state.support_size, _MOST_ENTRIES))[1]


FAULTS: FaultParts = {
    "M04": {"support_indices": teachers_choice},
    "M39": {"support_indices": with_k_changed(+1)},
    "M40": {"support_indices": with_k_changed(-1)},
    "M41": {"support": _each_sides_own},
    "M42": {"support_indices": _whole_vocabulary, "support": _on_union},
    "M43": {"support": _normalised_over_support},
    "M44": {"support": without_temperature},
    "M45": {"support_indices": _whole_vocabulary},
    "M129": {"support_indices": _with_sampled_token},
    "M130": {"support_indices": _of_both_sides_sum},
    "M136": {"support_indices": _least_likely},
    "M146": {"support": _tempered_after_the_choice},
    "M147": {"support_indices": _capped_k},
    "M137": {"support_indices": _never_whole_vocabulary},
}
