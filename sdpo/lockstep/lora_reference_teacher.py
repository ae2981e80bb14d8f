"""A teacher of the reference for LoRA students whose effective weights `B·A` are averaged.

The average of whole weights, adapters merged in: base weights are the same on both sides, so that
averaging what an adapter adds to them is the same thing, and needs one dense matrix for each
adapted layer. The verl fork itself averages an adapter's factors (`docs/trainer.md`). Nothing here
is shared with the trainer's own teacher. Knows PEFT's layers by their attributes only.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from peft import PeftModel
    from peft.tuners.lora import Linear


class DenseTeacher(nn.Module):
    """A model whose adapters are off and whose adapted layers add averaged matrices.

    Args:
        whole: a PEFT model of its own; frozen weights may be shared.
        student: the PEFT model that is followed, with the same layers.
    """

    def __init__(self, whole: nn.Module, student: nn.Module):
        super().__init__()
        self.whole = cast("PeftModel", whole)
        self.averages = {name: nn.Parameter(t) for name, t in effective(student).items()}
        layers = _adapted(self.whole)
        for name, average in self.averages.items():
            layers[name].register_forward_hook(_adding(average))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Answer as the base model does with the averages added."""
        with self.whole.disable_adapter():
            return self.whole(*args, **kwargs)

    def sides(self, student: nn.Module) -> tuple[nn.Module, nn.Module]:
        """Give the averages and the student's effective weights, in the same order."""
        live = effective(student)
        ordered = [nn.Parameter(live[name]) for name in self.averages]
        return nn.ParameterList(list(self.averages.values())), nn.ParameterList(ordered)


def _adapted(model: "PeftModel") -> dict[str, "Linear"]:
    """Collect the layers with a linear adapter, by name."""
    adapter = model.active_adapter
    layers = cast("Iterable[tuple[str, Linear]]", model.named_modules())
    return {name: layer for name, layer in layers if adapter in getattr(layer, "lora_A", ())}


@torch.no_grad()
def effective(model: nn.Module) -> dict[str, Tensor]:
    """Multiply out what the adapter adds to each weight, `(out, in)`, in float32 or wider."""
    peft_model, added = cast("PeftModel", model), {}
    adapter = peft_model.active_adapter
    for name, layer in _adapted(peft_model).items():
        up, down = (getattr(layer, f"lora_{side}")[adapter].weight for side in "BA")
        wide = torch.promote_types(up.dtype, torch.float32)
        added[name] = (up.to(wide) @ down.to(wide)) * layer.scaling[adapter]
    return added


def _adding(average: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """Make a hook that adds a matrix's product with a layer's input to its output."""

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + (inputs[0].to(average.dtype) @ average.T).to(output.dtype)

    return hook


def tensors_of(teacher: nn.Module) -> Mapping[str, Tensor]:
    """Give the weights of a teacher by the names under which the candidate's are filed."""
    if isinstance(teacher, DenseTeacher):
        return teacher.averages
    return dict(teacher.named_parameters())
