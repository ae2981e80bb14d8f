"""The smallest rows, tokens and vocabulary on which a case still fails, by delta debugging.

The search is bounded by a count and draws nothing at random, so that it repeats.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from sdpo.parity.cases.loss_case import LossCase

MOST_TRIES = 150
PER_TOKEN = ("responses", "response_mask", "old_log_probs", "rollout_is_weights")
LOGITS = ("student_logits", "teacher_logits")

Fails = Callable[[LossCase], bool]


@dataclass
class Shrunk:
    """The smallest case found, and how many cases were tried."""

    case: LossCase
    tries: int = 0


def shrink(case: LossCase, fails: Fails, most_tries: int = MOST_TRIES) -> Shrunk:
    """Remove rows, tokens and vocabulary entries as long as the case fails.

    Args:
        case: one that fails.
        fails: whether a smaller case fails in the same way.
        most_tries: calls of `fails` at most.
    """
    found = Shrunk(case)
    before = None
    while before != found.case.student_logits.shape and found.tries < most_tries:
        before = found.case.student_logits.shape
        for axis in range(3):
            along(found, axis, fails, most_tries)
    return found


def along(found: Shrunk, axis: int, fails: Fails, most_tries: int) -> None:
    """Remove from one axis: first halves, then smaller and smaller pieces, in place."""
    piece = found.case.student_logits.shape[axis] // 2
    while piece >= 1:
        start = 0
        while start < found.case.student_logits.shape[axis]:
            size = found.case.student_logits.shape[axis]
            if found.tries >= most_tries:
                return
            smaller = without(found.case, axis, range(start, min(start + piece, size)))
            if smaller is None:
                start += piece
                continue
            found.tries += 1
            if fails(smaller):
                found.case = smaller
            else:
                start += piece
        piece //= 2


def without(case: LossCase, axis: int, removed: range) -> LossCase | None:
    """The case without some rows (axis 0), tokens (1) or vocabulary entries (2).

    Entries that responses name stay, and two entries at least. None if nothing can be removed.
    """
    size = case.student_logits.shape[axis]
    kept = torch.tensor([i for i in range(size) if i not in removed], dtype=torch.int64)
    if axis == 2:
        named = case.responses.unique()
        kept = torch.cat([kept, named]).unique()
        if len(kept) == size or len(kept) < 2:
            return None
        logits = {name: getattr(case, name)[..., kept].clone() for name in LOGITS}
        return replace(case, responses=torch.searchsorted(kept, case.responses), **logits)
    if not len(kept):
        return None
    changes = {
        name: value.index_select(axis, kept)
        for name in (*LOGITS, *PER_TOKEN)
        if (value := getattr(case, name)) is not None
    }
    if axis == 0 and case.self_distillation_mask is not None:
        changes["self_distillation_mask"] = case.self_distillation_mask.index_select(0, kept)
    return replace(case, **changes)
