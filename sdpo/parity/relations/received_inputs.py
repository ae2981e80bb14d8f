"""What a loss is given on a case, and by what two cases differ for it.

A relation compares a loss on one case with the same loss on a changed one. Where the change does
not reach what the loss is given, both are one computation and nothing is tested.
"""

from dataclasses import fields

import torch
from torch import Tensor

from sdpo.parity.candidates.log_prob_functions import NEEDED, FromLogProbs, log_prob_inputs
from sdpo.parity.cases.checked_call import LossCandidate
from sdpo.parity.cases.loss_case import LossCase
from sdpo.parity.truth.tolerances import TOLERANCES

_NOT_GIVEN = ("id", "tags", "recorded")
_LOGITS = ("student_logits", "teacher_logits", "responses")


def received(candidate: LossCandidate | None, case: LossCase) -> dict[str, object]:
    """Collect what a candidate is given, by name: the case's fields, or log-probs from them."""
    inputs: dict[str, object] = {
        f.name: getattr(case, f.name) for f in fields(case) if f.name not in _NOT_GIVEN
    }
    if not isinstance(candidate, FromLogProbs):
        return inputs
    made = log_prob_inputs(case, case.student_logits)
    named = {name for name in made if candidate.takes(name)} | set(NEEDED[case.mode])
    rest = {name: value for name, value in inputs.items() if name not in _LOGITS}
    return rest | {name: value for name, value in made.items() if name in named}


def differences(candidate: LossCandidate | None, case: LossCase, other: LossCase) -> set[str]:
    """Name the inputs by which the other case differs for a candidate."""
    ours, theirs = received(candidate, case), received(candidate, other)
    return {
        name for name in ours.keys() | theirs.keys() if not alike(ours.get(name), theirs.get(name))
    }


def alike(ours: object, theirs: object) -> bool:
    """Tell whether two inputs are the same but for rounding, computed in another order."""
    if not isinstance(ours, Tensor) or not isinstance(theirs, Tensor):
        return ours is theirs or (type(ours) is type(theirs) and ours == theirs)
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    if not ours.is_floating_point():
        return torch.equal(ours, theirs)
    room = TOLERANCES.relation_input_roundings * torch.finfo(ours.dtype).eps
    return torch.allclose(ours, theirs, rtol=room, atol=room, equal_nan=True)
