"""Smaller cases of the loss, by delta debugging: fewer rows, tokens and vocabulary entries."""

from collections.abc import Callable
from dataclasses import replace

import torch

from sdpo.parity.bundles.shrink import Reductions, shrink
from sdpo.parity.cases.loss_case import LossCase

_MOST_TRIES = 150
_PER_TOKEN = ("responses", "response_mask", "old_log_probs", "rollout_is_weights")
_LOGITS = ("student_logits", "teacher_logits")


def shrink_case(
    case: LossCase, fails: Callable[[LossCase], bool], most_tries: int = _MOST_TRIES
) -> tuple[LossCase, int]:
    """Shrink a case of the loss; arguments and result are those of `shrink`."""
    return shrink(case, _reductions(case), fails, most_tries)


def _reductions(case: LossCase) -> Reductions[LossCase]:
    """Cut each axis: first halves, then smaller and smaller pieces, until nothing more goes."""
    before = None
    while before != case.student_logits.shape:
        before = case.student_logits.shape
        for axis in range(3):
            piece = case.student_logits.shape[axis] // 2
            while piece >= 1:
                start = 0
                while start < (size := case.student_logits.shape[axis]):
                    smaller = without(case, axis, range(start, min(start + piece, size)))
                    if smaller is not None and (yield smaller):
                        case = smaller
                    else:
                        start += piece
                piece //= 2


def without(case: LossCase, axis: int, removed: range) -> LossCase | None:
    """Take rows (axis 0), tokens (1) or vocabulary entries (2) out of a case.

    Entries that responses name stay, and two entries at least. None if nothing can be removed.
    """
    size = case.student_logits.shape[axis]
    kept = torch.tensor([i for i in range(size) if i not in removed], dtype=torch.int64)
    if axis == 2:
        named = case.responses.unique()
        kept = torch.cat([kept, named]).unique()
        if len(kept) == size or len(kept) < 2:
            return None
        logits = {name: getattr(case, name)[..., kept].clone() for name in _LOGITS}
        return replace(case, responses=torch.searchsorted(kept, case.responses), **logits)
    if not len(kept):
        return None
    changes = {
        name: value.index_select(axis, kept)
        for name in (*_LOGITS, *_PER_TOKEN)
        if (value := getattr(case, name)) is not None
    }
    if axis == 0 and case.self_distillation_mask is not None:
        changes["self_distillation_mask"] = case.self_distillation_mask.index_select(0, kept)
    return replace(case, **changes)
