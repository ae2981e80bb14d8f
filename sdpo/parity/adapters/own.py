"""Our own implementation as a candidate: it exposes every stage."""

from collections.abc import Mapping

import torch
from torch import Tensor

from sdpo import loss
from sdpo.parity.adapters.callables import location_of
from sdpo.parity.case import LossCase
from sdpo.parity.stages import NAMES


class Own:
    """`sdpo.loss.self_distillation_loss` with its trace."""

    name = "sdpo"
    kind = "implementation"
    stages = NAMES
    notes = ()

    def __init__(self) -> None:
        function = loss.self_distillation_loss
        self.location = location_of(function)

    def trace(self, case: LossCase) -> Mapping[str, Tensor]:
        """Stage values on a case, gradient included."""
        leaf = case.student_logits.detach().clone().requires_grad_(True)
        values: dict[str, Tensor] = {}
        value = loss.self_distillation_loss(
            leaf,
            case.teacher_logits,
            case.responses,
            case.response_mask,
            old_log_probs=case.old_log_probs,
            self_distillation_mask=case.self_distillation_mask,
            rollout_is_weights=case.rollout_is_weights,
            config=case.config,
            trace=values,
        )
        (values["gradient"],) = torch.autograd.grad(value, leaf)
        return {name: tensor.detach() for name, tensor in values.items()}
