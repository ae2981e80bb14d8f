"""What a loss is given on a case, and by what two cases differ for it.

A relation compares a loss on one case with the same loss on a changed one. Where the change does
not reach what the loss is given, both are one computation and nothing is tested.
"""

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from sdpo.parity.candidates.loss_functions import NEEDED, FromLogProbs, log_prob_inputs
from sdpo.parity.cases.loss_case import LossCase
from sdpo.parity.truth.tolerances import TOLERANCES

NOT_GIVEN = ("id", "tags", "recorded")
LOGITS = ("student_logits", "teacher_logits", "responses")


def received(candidate: Any, case: LossCase) -> dict[str, Any]:
    """What a candidate is given, by name: the case's own fields, or log-probs made from them."""
    found = {f.name: getattr(case, f.name) for f in fields(case) if f.name not in NOT_GIVEN}
    if not isinstance(candidate, FromLogProbs):
        return found
    made = log_prob_inputs(case, case.student_logits)
    named = {name for name in made if candidate.takes(name)} | set(NEEDED[case.mode])
    rest = {name: value for name, value in found.items() if name not in LOGITS}
    return rest | {name: value for name, value in made.items() if name in named}


def differences(candidate: Any, case: LossCase, other: LossCase) -> set[str]:
    """The names under which a candidate is given something else on the other case."""
    ours, theirs = received(candidate, case), received(candidate, other)
    return {
        name for name in ours.keys() | theirs.keys() if not alike(ours.get(name), theirs.get(name))
    }


def alike(ours: Any, theirs: Any) -> bool:
    """Whether two inputs are the same but for rounding: computed from the same in another order."""
    if not isinstance(ours, Tensor) or not isinstance(theirs, Tensor):
        return ours is theirs or (type(ours) is type(theirs) and ours == theirs)
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    if not ours.is_floating_point():
        return torch.equal(ours, theirs)
    room = TOLERANCES.relation_input_roundings * torch.finfo(ours.dtype).eps
    return torch.allclose(ours, theirs, rtol=room, atol=room, equal_nan=True)
