"""Copy weights and gradients of students and teachers by name."""

from typing import Any

import torch
from torch import nn

from sdpo.parity.cases.checked_call import CandidateError
from sdpo.parity.trainers.scenarios.training_record import Tensors


def weights_of(module: nn.Module, *, trained_only: bool = False) -> Tensors:
    """Copy the weights of a module, all of them or those that are trained."""
    named = module.named_parameters()
    return {n: p.detach().clone() for n, p in named if p.requires_grad or not trained_only}


def gradients_of(model: nn.Module) -> Tensors:
    """Copy the gradients of the trained weights; one that is None is left out."""
    named = model.named_parameters()
    return {
        name: p.grad.detach().clone() for name, p in named if p.requires_grad and p.grad is not None
    }


def teacher_weights(teacher: nn.Module | None, student: nn.Module, adapter: str) -> Tensors:
    """Copy a teacher's weights, or, with adapters, the effective ones of the adapted layers.

    Args:
        teacher: the module that answers; None gives nothing.
        student: the module that is trained.
        adapter: name of the teacher's adapter where both are one module.
    """
    if teacher is None:
        return {}
    if not hasattr(teacher, "peft_config"):
        return weights_of(teacher)
    return effective_weights(teacher, adapter if teacher is student else None)


@torch.no_grad()
def effective_weights(model: Any, adapter: str | None = None) -> Tensors:
    """Compute the weights that an adapter makes of its layers, under the plain model's names.

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
