"""Where a self-teacher keeps its weights, and how it answers with them.

| storage | modes | memory |
|---|---|---|
| `CopyWeights` | `ema`, `frozen`, `trust_region` | a whole second model |
| `AdapterWeights` | the same for PEFT models, and `lora_ema` | a second adapter |
| `EffectiveWeights` | `lora_ema` with `lora_average="effective"` | one dense matrix a layer |
"""

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sdpo.fused.lm_head import Projection
from sdpo.settings.config import ConfigError
from sdpo.update.actor_update import Batch

TEACHER_ADAPTER = "sdpo_teacher"
Answer = TypeVar("Answer", Tensor, Projection)


class LoraLayer(Protocol):
    """A linear layer of PEFT with adapters, as far as it is used here."""

    base_layer: nn.Linear
    register_forward_hook: Callable[..., RemovableHandle]

    def get_delta_weight(self, adapter: str) -> Tensor:
        """Return what an adapter adds to the weight, B·A with its scale."""
        ...


class TeacherWeights(Protocol):
    """The weights of a teacher, which may follow the student's."""

    names: list[str]
    """What the tensors are called in a checkpoint."""

    def parameters(self) -> list[Tensor]:
        """Return the tensors that may follow the student."""
        ...

    def student_parameters(self, model: nn.Module) -> list[Tensor]:
        """Return the student's tensors, in the order of `parameters`."""
        ...

    def answer(self, student: nn.Module, batch: Batch, forward: Callable[..., Answer]) -> Answer:
        """Run a forward pass with these weights: `response_logits` or `response_projection`."""
        ...

    def changed(self) -> None:
        """Put the tensors, which were changed in place, where the forward pass reads them."""


class CopyWeights:
    """A second model."""

    def __init__(self, model: nn.Module):
        self.module = copy_of(model).eval().requires_grad_(False)
        self.names = [name for name, p in model.named_parameters() if p.requires_grad]

    def parameters(self) -> list[Tensor]:
        """Return those weights of the copy that the student trains."""
        own = dict(self.module.named_parameters())
        return [own[name] for name in self.names]

    def student_parameters(self, model: nn.Module) -> list[Tensor]:
        """Return the student's weights, in the order of `parameters`."""
        live = dict(model.named_parameters())
        return [live[name] for name in self.names]

    def answer(self, student: nn.Module, batch: Batch, forward: Callable[..., Answer]) -> Answer:
        """Run the copy."""
        return forward(self.module, batch, "teacher_")

    def changed(self) -> None:
        """Do nothing: the copy reads its own weights."""


class AdapterWeights:
    """A second adapter of the student's base model.

    Averaging the factors A and B is not averaging the weights B·A: with the gaps ΔA, ΔB between
    student and teacher one step differs by `-rate (1 - rate) ΔB ΔA`. `EffectiveWeights` averages
    the products instead.
    """

    def __init__(self, model: Any, adapter: str = TEACHER_ADAPTER):
        student_adapter, self.adapter = model.active_adapter, adapter
        trained = [name for name, p in model.named_parameters() if p.requires_grad]
        add_adapter(model, adapter, student_adapter)
        own, place = dict(model.named_parameters()), f".{student_adapter}"
        self.names = [name for name in trained if place in name]
        if len(self.names) != len(trained):
            outside = sorted(set(trained) - set(self.names))
            raise ConfigError(
                f"weights outside the adapter {student_adapter!r} are trained ({outside[:3]}…), "
                "which a teacher adapter cannot hold: freeze them, or train without PEFT"
            )
        self.adapter_names = [name.replace(place, f".{adapter}") for name in self.names]
        self.model = model
        with torch.no_grad():
            for name, mine in zip(self.names, self.adapter_names, strict=True):
                own[mine].copy_(own[name])
        # TRL turns the adapters of quantized models to bfloat16, in which an average stalls.
        self.masters = [own[mine].detach().float().clone() for mine in self.adapter_names]

    def parameters(self) -> list[Tensor]:
        """Return the averaged factors, in float32."""
        return self.masters

    def student_parameters(self, model: nn.Module) -> list[Tensor]:
        """Return the factors of the student's adapter."""
        live = dict(model.named_parameters())
        return [live[name] for name in self.names]

    def answer(self, student: nn.Module, batch: Batch, forward: Callable[..., Answer]) -> Answer:
        """Run the base model with this adapter."""
        with active_adapter(self.model, self.adapter):
            return forward(student, batch, "teacher_")

    @torch.no_grad()
    def changed(self) -> None:
        """Copy the averages to the adapter."""
        own = dict(self.model.named_parameters())
        for name, master in zip(self.adapter_names, self.masters, strict=True):
            own[name].copy_(master)


class EffectiveWeights:
    """The average of what an adapter adds to the weights, `B·A`, instead of its factors.

    Keeps `B·A` of the average as one dense float32 matrix for each adapted layer: exact, at the
    memory of those layers' weights.
    """

    def __init__(self, model: Any):
        self.model = model
        self.student_adapter = model.active_adapter
        self.layers = lora_layers(model, self.student_adapter)
        self.names = list(self.layers)
        self.deltas = self.student_parameters(model)

    def parameters(self) -> list[Tensor]:
        """Return the averaged `B·A` of each layer, `(out, in)` float32."""
        return self.deltas

    @torch.no_grad()
    def student_parameters(self, model: nn.Module) -> list[Tensor]:
        """Return the student's `B·A` of each layer."""
        layers = self.layers.values()
        return [layer.get_delta_weight(self.student_adapter).float() for layer in layers]

    def answer(self, student: nn.Module, batch: Batch, forward: Callable[..., Answer]) -> Answer:
        """Run the base model with the averaged matrices added.

        Raises:
            ConfigError: the model runs its adapted layers otherwise than by calling them.
        """
        ran: set[nn.Module] = set()
        hooks = [
            layer.register_forward_hook(adding(delta, ran))
            for layer, delta in zip(self.layers.values(), self.deltas, strict=True)
        ]
        try:
            with evaluating(self.model), self.model.disable_adapter():
                answer = forward(student, batch, "teacher_")
        finally:
            for hook in hooks:
                hook.remove()
        if not ran:
            raise ConfigError(
                "lora_average='effective' adds its averages to the outputs of the adapted layers, "
                "but none of them was called (Unsloth's kernels read their weights instead): use "
                "lora_average='factors'"
            )
        return answer

    def changed(self) -> None:
        """Do nothing: the hooks read the matrices themselves."""


def lora_layers(model: Any, adapter: str) -> dict[str, LoraLayer]:
    """The linear layers that an adapter changes, by name.

    Raises:
        ConfigError: something other than the factors of linear layers is trained.
    """
    found = {
        name: module
        for name, module in model.named_modules()
        if adapter in getattr(module, "lora_A", ()) and not getattr(module, "fan_in_fan_out", False)
    }
    factors = {f"{name}.lora_{side}.{adapter}.weight" for name in found for side in "AB"}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    if odd := sorted(trained - factors):
        raise ConfigError(
            f"lora_average='effective' averages linear LoRA layers only, but {odd[:3]}… are "
            "trained as well: freeze them, or use lora_average='factors'"
        )
    return found


def adding(delta: Tensor, ran: set[nn.Module]) -> Any:
    """A hook that adds `x · deltaᵀ` to a linear layer's output, and the layer to those that ran."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        ran.add(module)
        return output + nn.functional.linear(inputs[0].to(delta.dtype), delta).to(output.dtype)

    return hook


def copy_of(model: nn.Module) -> nn.Module:
    """A deep copy that runs its own weights.

    TRL replaces `forward` on the instance by a function that holds the original model; such a
    replacement would make the copy answer with the student's weights, so it is left out. Gradients
    are not copied.
    """
    modules = [module for module in model.modules() if "forward" in vars(module)]
    patched = {module: vars(module).pop("forward") for module in modules}
    gradients = {p: p.grad for p in model.parameters() if p.grad is not None}
    for parameter in gradients:
        parameter.grad = None
    try:
        return copy.deepcopy(model)
    finally:
        for module, forward in patched.items():
            module.forward = forward
        for parameter, gradient in gradients.items():
            parameter.grad = gradient


def add_adapter(model: Any, name: str, like: str) -> None:
    """Add an adapter configured like another one; the active adapter and gradients stay."""
    settings = copy.deepcopy(model.peft_config[like])
    wanted = {n: p.requires_grad for n, p in model.named_parameters()}
    with torch.random.fork_rng(devices=[]):
        model.add_adapter(name, settings)
    for n, p in model.named_parameters():
        p.requires_grad_(wanted.get(n, False))


@contextlib.contextmanager
def active_adapter(model: Any, name: str) -> Iterator[None]:
    """Run with another adapter, in evaluation mode; modes and gradient flags come back."""
    before = model.active_adapter
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    with evaluating(model):
        model.set_adapter(name)
        try:
            yield
        finally:
            model.set_adapter(before)
            for parameter, flag in wanted.items():
                parameter.requires_grad_(flag)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run in evaluation mode; every module's own mode comes back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
