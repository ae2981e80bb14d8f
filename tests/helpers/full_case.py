"""A generated case of the loss with every optional input, as bundles pack and shrink it."""

import torch

from sdpo.parity.cases.loss_case import LossCase
from sdpo.settings.config import SDPOConfig


def full_case(rows=4, tokens=6, vocabulary=32) -> LossCase:
    generator = torch.Generator().manual_seed(1)
    shape = (rows, tokens)
    return LossCase(
        id="P-X",
        config=SDPOConfig(distillation_topk=4),
        student_logits=torch.randn(*shape, vocabulary, generator=generator),
        teacher_logits=torch.randn(*shape, vocabulary, generator=generator),
        responses=torch.randint(0, vocabulary, shape, generator=generator),
        response_mask=torch.ones(shape, dtype=torch.int64),
        old_log_probs=torch.randn(*shape, generator=generator),
        self_distillation_mask=torch.ones(rows),
        rollout_is_weights=torch.rand(*shape, generator=generator),
        tags=("core",),
    )
