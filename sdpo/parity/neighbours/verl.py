"""verl's distillation losses of its FSDP workers, with the reference's mean."""

from types import SimpleNamespace

import torch
from torch import Tensor

from sdpo.parity.neighbours.asked import counted, mean_of, refuse
from sdpo.parity.neighbours.packages import attribute_of
from sdpo.settings.config import SDPOConfig

_kl_divergence = attribute_of("verl-kl")
_forward_kl_topk = attribute_of("verl-topk")
_settings = attribute_of("verl-topk", "DistillationLossConfig")


def kl_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    responses: Tensor,
    response_mask: Tensor,
    *,
    self_distillation_mask: Tensor | None = None,
    config: SDPOConfig,
) -> Tensor:
    """`KL(teacher‖student)` over the whole vocabulary by verl's function of two distributions.

    Raises:
        NotImplementedError: it has no such setting.
    """
    refuse(config, ("sampled tokens", "top-k", "ratio", "alpha other than 0"))
    loss = _kl_divergence(
        log_q=(student_logits / config.temperature).log_softmax(-1),
        log_p=(teacher_logits.detach() / config.temperature).log_softmax(-1),
    )
    return mean_of(loss, counted(response_mask, self_distillation_mask), config.loss_agg_mode)


def forward_kl_topk(
    student_logits: Tensor,
    teacher_logits: Tensor,
    responses: Tensor,
    response_mask: Tensor,
    *,
    self_distillation_mask: Tensor | None = None,
    config: SDPOConfig,
) -> Tensor:
    """Call its loss, at its defaults, with a teacher's top-k log-probs as a server sends them.

    It is asked where the reference renormalises, as it appends no tail.

    Raises:
        NotImplementedError: it has no such setting.
    """
    lacks = ("sampled tokens", "full vocabulary", "tail", "ratio", "alpha other than 0")
    refuse(config, lacks)
    log_probs = (teacher_logits.detach() / config.temperature).log_softmax(-1)
    vocabulary = log_probs.shape[-1]
    assert config.distillation_topk is not None
    values, ids = log_probs.flatten(0, 1).topk(min(config.distillation_topk, vocabulary))
    settings = _settings(loss_mode="forward_kl_topk", use_policy_gradient=False)
    given = _forward_kl_topk(
        student_logits=(student_logits / config.temperature).reshape(1, -1, vocabulary),
        teacher_topk_log_probs=torch.nested.as_nested_tensor([values], layout=torch.jagged),
        teacher_topk_ids=torch.nested.as_nested_tensor([ids], layout=torch.jagged),
        config=SimpleNamespace(distillation_loss=settings),
        data_format="thd",
    )
    loss = given["distillation_losses"].view(response_mask.shape)
    return mean_of(loss, counted(response_mask, self_distillation_mask), config.loss_agg_mode)
