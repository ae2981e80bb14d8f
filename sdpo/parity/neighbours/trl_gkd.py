"""TRL's generalised Jensen-Shannon divergence, of its GKD trainer."""

from torch import Tensor

from sdpo.parity.neighbours.asked import labels_of, refuse
from sdpo.parity.neighbours.packages import attribute_of
from sdpo.settings.config import SDPOConfig

_LACKS = ("sampled tokens", "top-k", "ratio", "other means")
_generalized_jsd_loss = attribute_of("trl-gkd")


def gkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    responses: Tensor,
    response_mask: Tensor,
    *,
    self_distillation_mask: Tensor | None = None,
    config: SDPOConfig,
) -> Tensor:
    """Call it with labels; its trainer gives a teacher without gradient.

    Raises:
        NotImplementedError: it has no such setting.
    """
    refuse(config, _LACKS)
    return _generalized_jsd_loss(
        student_logits,
        teacher_logits.detach(),
        labels=labels_of(responses, response_mask, self_distillation_mask),
        beta=config.alpha,
        temperature=config.temperature,
    )
