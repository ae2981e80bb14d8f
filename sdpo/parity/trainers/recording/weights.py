"""Weights of students and teachers by name, copied."""

from typing import Any

import torch
from torch import Tensor, nn

from sdpo.parity.cases.checked_call import CandidateError

Tensors = dict[str, Tensor]


def gradients(model: nn.Module) -> Tensors:
    """The gradients of the trained weights; one that is None is left out."""
    named = model.named_parameters()
    return {
        name: p.grad.detach().clone() for name, p in named if p.requires_grad and p.grad is not None
    }


def teacher_weights(teacher: nn.Module | None, student: nn.Module, adapter: str) -> Tensors:
    """All weights of a teacher, or, with adapters, the effective ones of the adapted layers.

    Args:
        teacher: the module that answers; None gives nothing.
        student: the module that is trained.
        adapter: name of the teacher's adapter where both are one module.
    """
    if teacher is None:
        return {}
    if not hasattr(teacher, "peft_config"):
        return {name: p.detach().clone() for name, p in teacher.named_parameters()}
    return effective(teacher, adapter if teacher is student else None)


@torch.no_grad()
def effective(model: Any, adapter: str | None = None) -> Tensors:
    """Effective weights of the layers that an adapter changes, under the plain model's names.

    Args:
        model: a PEFT model with LoRA adapters.
        adapter: name; None for the active one.

    Raises:
        CandidateError: no layer has that adapter.
    """
    name = adapter or model.active_adapter
    layers = {
        path: module
        for path, module in model.get_base_model().named_modules()
        if name in getattr(module, "lora_A", ())
    }
    if not layers:
        raise CandidateError(
            "teacher_update",
            f"no layer has the teacher's adapter {name!r}; the model has {list(model.peft_config)}",
        )
    return {
        f"{path}.weight": (module.base_layer.weight + module.get_delta_weight(name)).clone()
        for path, module in layers.items()
    }
