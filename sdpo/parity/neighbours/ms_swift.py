"""ms-swift's loss of its GKD trainer."""

from torch import Tensor

from sdpo.parity.neighbours.asked import labels_of, refuse, refuse_wide_topk
from sdpo.parity.neighbours.packages import attribute_of
from sdpo.settings.config import SDPOConfig

_LACKS = ("sampled tokens", "tail", "ratio", "other means")
_gkd_loss = attribute_of("ms-swift")
_TeacherOutput = attribute_of("ms-swift", "TeacherOutput")


def gkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    responses: Tensor,
    response_mask: Tensor,
    *,
    self_distillation_mask: Tensor | None = None,
    config: SDPOConfig,
) -> Tensor:
    """Call it as the trainer does: the teacher's top-k first, its sum over its count.

    Raises:
        NotImplementedError: it has no such setting, or K is above the vocabulary.
    """
    refuse(config, _LACKS)
    labels = labels_of(responses, response_mask, self_distillation_mask)
    teacher = _TeacherOutput(full_logits=teacher_logits.detach(), labels=labels)
    if config.distillation_topk is not None:
        refuse_wide_topk(config, teacher_logits)
        teacher = teacher.to_topk(config.distillation_topk)
    total, count = _gkd_loss(student_logits, teacher, labels, config.alpha, config.temperature)
    return total / count if count else total * 0
