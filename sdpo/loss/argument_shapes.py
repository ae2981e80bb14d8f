"""What the arguments of the loss must look like: one clear error instead of a silent broadcast."""

from collections.abc import Sequence

import torch
from torch import Tensor

ROWS, PLACES = "one number for each row", "one number for each response token"


def check_loss_arguments(
    places: Sequence[int],
    responses: Tensor,
    response_mask: Tensor,
    old_log_probs: Tensor | None = None,
    self_distillation_mask: Tensor | None = None,
    rollout_is_weights: Tensor | None = None,
) -> None:
    """Check everything about a micro-batch but its logits or hidden states.

    Args:
        places: B and T, as the logits or hidden states have them.
        responses: `(B, T)` int64.
        response_mask: `(B, T)`.
        old_log_probs: `(B, T)`, or None.
        self_distillation_mask: `(B,)`, or None.
        rollout_is_weights: `(B, T)`, or None.

    Raises:
        ValueError: an argument has another shape, or `responses` another dtype.
    """
    check_token_ids("responses", responses, places)
    check_shape("response_mask", response_mask, "(B, T)", places, PLACES)
    check_shape("old_log_probs", old_log_probs, "(B, T)", places, PLACES)
    check_shape("self_distillation_mask", self_distillation_mask, "(B,)", places[:1], ROWS)
    check_shape("rollout_is_weights", rollout_is_weights, "(B, T)", places, PLACES)


def check_logits(student_logits: Tensor, teacher_logits: Tensor) -> None:
    """Refuse logits that are not `(B, T, V)` floating on both sides.

    Raises:
        ValueError: they are not.
    """
    for name, logits in (("student_logits", student_logits), ("teacher_logits", teacher_logits)):
        if logits.dim() != 3 or not logits.is_floating_point():
            raise ValueError(
                f"{name} is {described(logits)}; expected (B, T, V) floating, row t predicting "
                "response token t"
            )
    check_alike(student_logits=student_logits, teacher_logits=teacher_logits)


def check_token_ids(name: str, ids: Tensor, places: Sequence[int]) -> None:
    """Refuse token ids that are not int64 of the given shape.

    Raises:
        ValueError: they are not.
    """
    check_shape(name, ids, "(B, T)", places, "one token id for each place of the logits")
    if ids.dtype != torch.int64:
        raise ValueError(f"{name} is {described(ids)}; expected torch.int64 token ids")


def check_shape(
    name: str, tensor: Tensor | None, symbols: str, shape: Sequence[int], meaning: str
) -> None:
    """Refuse a tensor of another shape; None passes.

    Raises:
        ValueError: its shape is another one.
    """
    if tensor is not None and tensor.shape != torch.Size(shape):
        raise ValueError(
            f"{name} is {described(tensor)}; expected {symbols} = {tuple(shape)}, {meaning}"
        )


def check_alike(**tensors: Tensor | None) -> None:
    """Refuse tensors, by their names, whose shapes differ; those that are None pass.

    Raises:
        ValueError: a shape differs from the first tensor's.
    """
    (first, model), *others = [(n, t) for n, t in tensors.items() if t is not None]
    for name, tensor in others:
        if tensor.shape != model.shape:
            raise ValueError(
                f"{name} is {described(tensor)}; expected {tuple(model.shape)}, as {first}"
            )


def described(tensor: Tensor) -> str:
    """Shape and dtype of a tensor."""
    return f"{tuple(tensor.shape)} {tensor.dtype}"
