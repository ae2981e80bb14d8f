"""A teacher of the reference for LoRA students whose effective weights `B·A` are averaged.

The average of whole weights, adapters merged in: base weights are the same on both sides, so that
averaging what an adapter adds to them is the same thing, and needs one dense matrix for each
adapted layer. The verl fork itself averages an adapter's factors (`docs/trainer.md`). Nothing here
is shared with the trainer's own teacher. Knows PEFT's layers by their attributes only.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class DenseTeacher(nn.Module):
    """A model whose adapters are off and whose adapted layers add averaged matrices.

    Args:
        whole: a PEFT model of its own; frozen weights may be shared.
        student: the PEFT model that is followed, with the same layers.
    """

    def __init__(self, whole: Any, student: Any):
        super().__init__()
        self.whole = whole
        self.averages = {name: nn.Parameter(t) for name, t in effective(student).items()}
        layers = _adapted(whole)
        for name, average in self.averages.items():
            layers[name].register_forward_hook(_adding(average))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the base model answers with the averages added."""
        with self.whole.disable_adapter():
            return self.whole(*args, **kwargs)

    def sides(self, student: nn.Module) -> tuple[nn.Module, nn.Module]:
        """The averages and the student's effective weights, for a function over all parameters."""
        live = effective(student)
        ordered = [nn.Parameter(live[name]) for name in self.averages]
        return nn.ParameterList(list(self.averages.values())), nn.ParameterList(ordered)


def _adapted(model: Any) -> dict[str, Any]:
    """Layers with a linear adapter, by name."""
    adapter = model.active_adapter
    return {n: m for n, m in model.named_modules() if adapter in getattr(m, "lora_A", ())}


@torch.no_grad()
def effective(model: Any) -> dict[str, Tensor]:
    """What the active adapter adds to each layer's weight, `(out, in)`, in float32 or wider."""
    adapter, found = model.active_adapter, {}
    for name, layer in _adapted(model).items():
        up, down = (getattr(layer, f"lora_{side}")[adapter].weight for side in "BA")
        wide = torch.promote_types(up.dtype, torch.float32)
        found[name] = (up.to(wide) @ down.to(wide)) * layer.scaling[adapter]
    return found


def _adding(average: Tensor) -> Any:
    """A hook that adds a matrix's product with a layer's input to its output."""

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + (inputs[0].to(average.dtype) @ average.T).to(output.dtype)

    return hook


def tensors_of(teacher: nn.Module) -> Mapping[str, Tensor]:
    """The weights of a teacher by the names under which the candidate's are filed."""
    if isinstance(teacher, DenseTeacher):
        return teacher.averages
    return dict(teacher.named_parameters())
