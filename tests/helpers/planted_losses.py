"""Losses with a fault that no recorded case shows: each is right but under one condition."""

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdpo.parity.candidates.implementations import reference_loss

Loss = Callable[..., Tensor]


class Planted(NamedTuple):
    """A faulty loss, and the stages that may be named as the first to depart."""

    loss: Loss
    stages: tuple[str, ...]


def with_inputs(change: Callable[[dict[str, Any]], None]) -> Loss:
    """The reference's loss of inputs that were changed before."""

    def loss(student_logits, teacher_logits, responses, response_mask, **others):
        inputs = {
            "student_logits": student_logits,
            "teacher_logits": teacher_logits,
            "responses": responses,
            "response_mask": response_mask,
            **others,
        }
        change(inputs)
        return reference_loss(**inputs)

    return named(loss)


def named(loss: Loss) -> Loss:
    """A loss with the signature of the protocol."""

    def whole(
        student_logits,
        teacher_logits,
        responses,
        response_mask,
        *,
        config,
        old_log_probs=None,
        self_distillation_mask=None,
        rollout_is_weights=None,
    ):
        return loss(
            student_logits,
            teacher_logits,
            responses,
            response_mask,
            config=config,
            old_log_probs=old_log_probs,
            self_distillation_mask=self_distillation_mask,
            rollout_is_weights=rollout_is_weights,
        )

    return whole


def tokens_beyond_32_dropped(inputs):
    if inputs["config"].full_logit_distillation:
        return
    mask = inputs["response_mask"].clone()
    mask[:, 32:] = 0
    inputs["response_mask"] = mask


def vocabulary_padded_to_eight(inputs):
    missing = max(0, 8 - inputs["student_logits"].shape[-1])
    for side in ("student_logits", "teacher_logits"):
        inputs[side] = torch.nn.functional.pad(inputs[side], (0, missing))


def vocabulary_beyond_4096_dropped(inputs):
    if inputs["config"].distillation_add_tail:
        return
    for side in ("student_logits", "teacher_logits"):
        inputs[side] = inputs[side][..., :4096]
    inputs["responses"] = inputs["responses"].clamp(max=inputs["student_logits"].shape[-1] - 1)


def strides_of_teacher_ignored(inputs):
    teacher = inputs["teacher_logits"].detach()
    strides = torch.empty(teacher.shape).stride()
    inputs["teacher_logits"] = teacher.as_strided(teacher.shape, strides)


def small_clip_raised(inputs):
    config = inputs["config"]
    if config.is_clip is not None:
        inputs["config"] = replace(config, is_clip=max(config.is_clip, 0.8))


def mask_counted_in_its_dtype(inputs):
    mask, config = inputs["response_mask"], inputs["config"]
    of_tokens = config.loss_agg_mode == "token-mean" and config.distillation_topk is None
    if mask.dtype == torch.uint8 and of_tokens and mask.sum() > 255:
        tokens = mask.sum()
        inputs["rollout_is_weights"] = torch.full(mask.shape, float(tokens / (tokens % 256)))


def signal_along_tokens(inputs):
    signal, mask = inputs["self_distillation_mask"], inputs["response_mask"]
    square = len(mask) == mask.shape[1] and inputs["config"].distillation_topk is None
    if signal is not None and square:
        inputs["response_mask"], inputs["self_distillation_mask"] = mask * signal, None


def low_precision_under_autocast(inputs):
    if torch.is_autocast_enabled("cpu"):
        inputs["student_logits"] = inputs["student_logits"].bfloat16()


def student_in_the_teachers_dtype(inputs):
    inputs["student_logits"] = inputs["student_logits"].to(inputs["teacher_logits"].dtype)


def weights_capped_at_two(inputs):
    sampled = not inputs["config"].full_logit_distillation
    if sampled and inputs["rollout_is_weights"] is not None:
        inputs["rollout_is_weights"] = inputs["rollout_is_weights"].clamp(max=2.0)


def padding_counts_in_evaluation(inputs):
    if not torch.is_grad_enabled():
        inputs["response_mask"] = torch.ones_like(inputs["response_mask"])


class OwnBackward(torch.autograd.Function):
    """A gradient computed in forward, as fused losses do."""

    kept: Tensor | None = None

    @staticmethod
    def forward(ctx, logits, gradient, arrives, keeps_apart):
        ctx.arrives, ctx.keeps_apart = arrives, keeps_apart
        ctx.save_for_backward(gradient)
        OwnBackward.kept = gradient
        return torch.zeros((), dtype=logits.dtype)

    @staticmethod
    def backward(ctx, *incoming):
        gradient = ctx.saved_tensors[0] if ctx.keeps_apart else OwnBackward.kept
        assert gradient is not None
        return gradient * (incoming[0] if ctx.arrives else 1.0), None, None, None


def with_own_backward(*, arrives: bool, keeps_apart: bool) -> Loss:
    def loss(student_logits, teacher_logits, responses, response_mask, **others):
        if not torch.is_grad_enabled():
            return reference_loss(
                student_logits, teacher_logits, responses, response_mask, **others
            )
        leaf = student_logits.detach().requires_grad_(True)
        value = reference_loss(leaf, teacher_logits, responses, response_mask, **others)
        (gradient,) = torch.autograd.grad(value, leaf)
        zero = OwnBackward.apply(student_logits, gradient, arrives, keeps_apart)
        return value.detach() + zero

    return named(loss)


def positions_exchanged() -> Loss:
    @wraps(reference_loss)
    def loss(*inputs, **others):
        if inputs:
            inputs = (inputs[1], inputs[0].detach() + 0 * inputs[0], *inputs[2:])
        return reference_loss(*inputs, **others)

    return loss


OF_LOGITS = ("log_probs", "support", "tail", "divergence", "aggregate")

PLANTED = {
    "tokens beyond 32 dropped, sampled": Planted(
        with_inputs(tokens_beyond_32_dropped), ("aggregate",)
    ),
    "V below 8 padded": Planted(with_inputs(vocabulary_padded_to_eight), OF_LOGITS),
    "V beyond 4096 dropped, without tail": Planted(
        with_inputs(vocabulary_beyond_4096_dropped), OF_LOGITS
    ),
    "the teacher's strides ignored": Planted(with_inputs(strides_of_teacher_ignored), OF_LOGITS),
    "clip below 0.8 raised": Planted(with_inputs(small_clip_raised), ("importance", "aggregate")),
    "uint8 mask overflows, without top-k": Planted(
        with_inputs(mask_counted_in_its_dtype), ("aggregate",)
    ),
    "signal along tokens where B = T, without top-k": Planted(
        with_inputs(signal_along_tokens), ("aggregate", "distillation_mask")
    ),
    "bfloat16 under autocast": Planted(with_inputs(low_precision_under_autocast), OF_LOGITS),
    # The ladder has no rung of two dtypes, and the loss stays within its budget here.
    "student in the teacher's dtype": Planted(
        with_inputs(student_in_the_teachers_dtype), (*OF_LOGITS, "gradient")
    ),
    "weights capped at two, sampled": Planted(
        with_inputs(weights_capped_at_two), ("importance", "aggregate")
    ),
    "padding counts in evaluation": Planted(
        with_inputs(padding_counts_in_evaluation), ("aggregate",)
    ),
    "arriving gradient ignored": Planted(
        with_own_backward(arrives=False, keeps_apart=True), ("gradient",)
    ),
    "gradient of the last call": Planted(
        with_own_backward(arrives=True, keeps_apart=False), ("gradient",)
    ),
    "sides exchanged by position": Planted(positions_exchanged(), OF_LOGITS),
}
RIGHT = {
    "own backward": with_own_backward(arrives=True, keeps_apart=True),
    "nothing changed": with_inputs(lambda inputs: None),
}
