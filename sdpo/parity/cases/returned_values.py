"""What a candidate returned where a tensor is expected: the tensor, or why there is none."""

from typing import Any

import torch
from torch import Tensor

_SCALAR = "expected a scalar tensor with a graph to student_logits, alone or first in a tuple"
CPU = torch.device("cpu")


def loss_in(result: Any) -> tuple[Any, str]:
    """The loss in what a function returned, and how to name its place: alone, or in a tuple."""
    if isinstance(result, tuple) and result:
        return result[0], "a tuple that starts with "
    return result, ""


def no_scalar(result: Any, device: torch.device = CPU) -> str:
    """Why the result of a loss function is no loss; empty if it is one.

    A number is none either, even where it is right: it has no graph, so that nothing is learnt
    from it.

    Args:
        result: what the function returned.
        device: where its inputs were.
    """
    value, place = loss_in(result)
    if problem := no_tensor(value, device):
        return f"returned {place}{problem}; {_SCALAR}"
    if value.dim() != 0:
        return f"returned {place}shape {tuple(value.shape)}; expected a scalar, shape ()"
    if not value.is_floating_point():
        return f"returned {place}dtype {value.dtype}; expected floating point"
    return ""


def no_tensor(value: Any, device: torch.device = CPU) -> str:
    """Why a value is no tensor whose numbers can be read here; empty if it is one."""
    if not isinstance(value, Tensor):
        return f"{type(value).__name__}, no tensor"
    if value.is_nested or value.layout != torch.strided:
        layout = "nested" if value.is_nested else str(value.layout)
        return f"a tensor of layout {layout} where a dense one is expected"
    if value.device != device:
        return f"a tensor on device {value.device}, no numbers on {device}"
    if value.is_quantized or value.is_complex():
        return f"a tensor of dtype {value.dtype} where real numbers are expected"
    return ""


def no_indices(value: Tensor, logits: Tensor) -> str:
    """Why a tensor cannot be the chosen entries of `(B, T, V)` logits; empty if it can.

    Args:
        value: what a candidate returned as `(B, T, K)` indices.
        logits: those that it chose from.
    """
    rows = tuple(logits.shape[:2])
    if value.is_floating_point() or value.dtype == torch.bool:
        return f"indices of dtype {value.dtype}; expected whole numbers"
    if value.dim() != 3 or tuple(value.shape[:2]) != rows:
        return f"indices of shape {tuple(value.shape)}; expected ({rows[0]}, {rows[1]}, K)"
    if value.numel() and not 0 <= int(value.min()) <= int(value.max()) < logits.shape[-1]:
        return f"indices outside of 0 to {logits.shape[-1] - 1}"
    return ""
