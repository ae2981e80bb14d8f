"""TRL's loss of its distillation trainer, from hidden states and two heads."""

from torch import Tensor

from sdpo.parity.neighbours.asked import counted, identity_head, refuse, refuse_as_product
from sdpo.parity.neighbours.packages import attribute_of
from sdpo.settings.config import SDPOConfig

_LACKS = ("sampled tokens", "top-k", "ratio", "other means")
_chunked_divergence_loss = attribute_of("trl-distillation")


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    responses: Tensor,
    response_mask: Tensor,
    *,
    self_distillation_mask: Tensor | None = None,
    config: SDPOConfig,
) -> Tensor:
    """Call it with the logits as hidden states and the identity as both heads.

    Raises:
        NotImplementedError: it has no such setting, or no head gives these logits.
    """
    refuse(config, _LACKS)
    refuse_as_product(student_logits, teacher_logits)
    student, student_head = identity_head(student_logits)
    teacher, teacher_head = identity_head(teacher_logits.detach())
    loss, _, _ = _chunked_divergence_loss(
        student.view_as(student_logits),
        teacher.view_as(teacher_logits),
        student_head,
        teacher_head,
        counted(response_mask, self_distillation_mask),
        config.alpha,
        temperature=config.temperature,
    )
    return loss
