"""areno-opd's on-policy distillation loss of sampled tokens."""

from types import SimpleNamespace

from torch import Tensor

from sdpo.parity.neighbours.asked import counted, mean_of, refuse, token_log_probs
from sdpo.parity.neighbours.packages import function_alone
from sdpo.settings.config import SDPOConfig

_LACKS = ("full vocabulary", "top-k", "ratio")


def _response_layout(data_pack: SimpleNamespace, logprobs: Tensor, **_: object) -> SimpleNamespace:
    """In place of AReno's function: what the loss reads of a batch."""
    return data_pack


def _masked_mean(values: Tensor, layout: SimpleNamespace) -> Tensor:
    """In place of AReno's function: the reference's mean."""
    return mean_of(values, layout.mask, layout.loss_agg_mode)


_opd_loss = function_alone(
    "areno-opd", {"response_layout": _response_layout, "masked_mean": _masked_mean}
)


def opd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    responses: Tensor,
    response_mask: Tensor,
    *,
    self_distillation_mask: Tensor | None = None,
    config: SDPOConfig,
) -> Tensor:
    """Call it with log-probs of the sampled tokens at temperature 1, and its own temperature.

    Raises:
        NotImplementedError: it has no such setting.
    """
    refuse(config, _LACKS)
    batch = SimpleNamespace(
        ref_logprobs=token_log_probs(teacher_logits, responses),
        mask=counted(response_mask, self_distillation_mask),
        loss_agg_mode=config.loss_agg_mode,
    )
    loss, _ = _opd_loss(
        batch, token_log_probs(student_logits, responses), temperature=config.temperature
    )
    return loss
