"""Losses of projects that are no package: OPSD, CLaaS and rlhf-book, each from its own files."""

import math
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn import functional

from sdpo.parity.neighbours.asked import (
    counted,
    labels_of,
    refuse,
    refuse_wide_topk,
    token_log_probs,
)
from sdpo.parity.neighbours.packages import attribute_of, function_alone
from sdpo.settings.config import SDPOConfig


class Opsd:
    """OPSD's generalised Jensen-Shannon divergence, with its teacher's top-k."""

    def __init__(self) -> None:
        self.loss = function_alone("opsd", {"torch": torch, "F": functional})

    def __call__(
        self,
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
        refuse(config, ("sampled tokens", "tail", "ratio", "other means"))
        refuse_wide_topk(config, teacher_logits)
        return self.loss(
            student_logits,
            teacher_logits.detach(),
            labels=labels_of(responses, response_mask, self_distillation_mask),
            beta=config.alpha,
            temperature=config.temperature,
            top_k=config.distillation_topk,
        )


class Claas:
    """CLaaS's SDPO loss, which is given the teacher's top-k log-probs."""

    def __init__(self) -> None:
        self.loss = attribute_of("claas")
        self.arguments = attribute_of("claas", "SDPOLossInput")

    def __call__(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        responses: Tensor,
        response_mask: Tensor,
        *,
        old_log_probs: Tensor | None = None,
        self_distillation_mask: Tensor | None = None,
        config: SDPOConfig,
    ) -> Tensor:
        """Call it without its regularisation by a base policy.

        At alpha 1 it takes sampled tokens, and is given all of the teacher's log-probs here.

        Raises:
            NotImplementedError: it has no such setting.
        """
        refuse(config, ("full vocabulary", "tail", "other means", "top-k with alpha 0 or 1"))
        topk = vocabulary = teacher_logits.shape[-1]
        if config.full_logit_distillation:
            topk = min(config.distillation_topk or vocabulary, vocabulary)
        elif not teacher_logits.isfinite().all():
            raise NotImplementedError(
                "takes a top-k of the teacher, in which nothing is impossible"
            )
        student = student_logits / config.temperature
        log_probs = (teacher_logits.detach() / config.temperature).log_softmax(-1)
        values, ids = log_probs.topk(topk)
        own = token_log_probs(student.detach(), responses)
        clipped = config.is_clip is not None
        clip = config.is_clip if clipped else math.inf
        given = self.arguments(
            student_logits=student,
            teacher_logprobs=values,
            teacher_indices=ids,
            base_logprobs=own,
            response_mask=counted(response_mask, self_distillation_mask),
            old_student_logprobs=old_log_probs if clipped else own,
            response_ids=responses,
            training={"alpha": config.alpha, "is_clip": clip, "kl_reg_weight": 0.0},
        )
        return self.loss(given)["loss"]


class RlhfBook:
    """rlhf-book's SDPO loss of a chunk of rollouts, which calls the model itself."""

    lacks = (
        "sampled tokens",
        "full vocabulary",
        "renormalised top-k",
        "ratio",
        "other means",
        "temperature",
        "alpha other than 1",
    )

    def __init__(self) -> None:
        self.of_topk = attribute_of("rlhf-book")

    def __call__(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        responses: Tensor,
        response_mask: Tensor,
        *,
        self_distillation_mask: Tensor | None = None,
        config: SDPOConfig,
    ) -> Tensor:
        """Call it with a model that gives the student's logits, then the teacher's.

        Raises:
            NotImplementedError: it has no such setting.
        """
        refuse(config, self.lacks)
        refuse_wide_topk(config, student_logits)
        sides = iter((student_logits, teacher_logits.detach()))

        def model(**_: object) -> SimpleNamespace:
            side = next(sides)  # a model gives one position more than are learned
            return SimpleNamespace(logits=torch.cat([side, side[:, -1:]], dim=1))

        mask = counted(response_mask, self_distillation_mask)
        names = ("s_ids", "s_mask", "t_ids", "t_mask")
        batch = dict.fromkeys(names, responses) | {"action_mask": mask}
        loss = self.of_topk(kl_top_k=config.distillation_topk)
        tokens = mask.sum().clamp_min(1.0)
        return loss._chunk_loss(model, batch, slice(0, len(responses)), mask.shape[1], tokens)
