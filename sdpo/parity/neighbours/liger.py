"""Liger's fused linear layer with a generalised Jensen-Shannon divergence."""

from torch import Tensor

from sdpo.parity.neighbours.asked import identity_head, labels_of, refuse, refuse_as_product
from sdpo.parity.neighbours.packages import attribute_of
from sdpo.settings.config import SDPOConfig

_LACKS = ("sampled tokens", "top-k", "ratio", "other means")
_FusedLinearJSDLoss = attribute_of("liger")


def jsd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    responses: Tensor,
    response_mask: Tensor,
    *,
    self_distillation_mask: Tensor | None = None,
    config: SDPOConfig,
) -> Tensor:
    """Call it with the logits as hidden states, the identity as both heads, and no hard loss.

    Raises:
        NotImplementedError: it has no such setting, or no head gives these logits.
    """
    refuse(config, _LACKS)
    refuse_as_product(student_logits, teacher_logits)
    fused = _FusedLinearJSDLoss(
        weight_hard_loss=0.0,
        weight_soft_loss=1.0,
        beta=config.alpha,
        temperature=config.temperature,
        compiled=False,
    )
    labels = labels_of(responses, response_mask, self_distillation_mask).reshape(-1)
    student = identity_head(student_logits)
    return fused(*student, *identity_head(teacher_logits.detach()), labels)
