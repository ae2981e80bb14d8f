"""The self-teachers of the trainer: where their weights live, and how they answer.

| storage | modes | memory |
|---|---|---|
| `CopyTeacher` | `ema`, `frozen`, `trust_region` | a whole second model |
| `AdapterTeacher` | the same for PEFT models, and `lora_ema` | a second adapter |

Whichever the storage, the rule of the update is `sdpo.update.ema_teacher.teacher_update`. A teacher
always answers in evaluation mode and without gradient.
"""

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sdpo.fused.hidden_states import response_projection
from sdpo.fused.lm_head import Projection
from sdpo.settings.config import ConfigError, SDPOConfig
from sdpo.update.actor_update import Batch, response_logits, rows_with_signal
from sdpo.update.ema_teacher import ema_stalls, teacher_update, trust_region_logits

TEACHER_ADAPTER = "sdpo_teacher"
Answer = TypeVar("Answer", Tensor, Projection)


class TeacherWarning(UserWarning):
    """A teacher that will not do what was probably meant."""


class CopyTeacher:
    """A teacher with weights of its own."""

    def __init__(self, model: nn.Module, config: SDPOConfig):
        self.config = config
        self.module = copy_of(model).eval().requires_grad_(False)
        self.names = [name for name, p in model.named_parameters() if p.requires_grad]
        warn_if_stalling(self.parameters(), config)

    def parameters(self) -> list[Tensor]:
        """The weights that may follow the student: those that the student trains."""
        own = dict(self.module.named_parameters())
        return [own[name] for name in self.names]

    def student_parameters(self, model: nn.Module) -> list[Tensor]:
        """The student's weights, in the order of `parameters`."""
        live = dict(model.named_parameters())
        return [live[name] for name in self.names]

    @torch.no_grad()
    def logits(self, student: nn.Module, batch: Batch) -> Tensor:
        """Logits `(B, T, V)` on the teacher's prompts, before temperature; zeros without signal."""
        answer = partial(response_logits, share_prompts=self.config.shares_prompts("teacher"))
        logits = at_rows_with_signal(batch, lambda rows: self.own(student, rows, answer))
        if self.config.teacher_regularization == "trust-region":
            # As in the reference, the live student answers in whatever mode it is in.
            live = self.of_student(student, batch, response_logits)
            # Under autocast the copy answers in bfloat16, the prepared student in float32.
            mix = self.config.teacher_update_rate
            return trust_region_logits(logits.to(live.dtype), live, mix)
        return logits

    @torch.no_grad()
    def projections(self, student: nn.Module, batch: Batch) -> tuple[Projection, Projection | None]:
        """Hidden states and head on the teacher's prompts, and the live student's if they mix."""
        answer = partial(response_projection, share_prompts=self.config.shares_prompts("teacher"))
        own = self.own(student, batch, answer)
        mixed = self.config.teacher_regularization == "trust-region"
        return own, self.of_student(student, batch, response_projection) if mixed else None

    def of_student(self, student: nn.Module, batch: Batch, answer: Callable[..., Answer]) -> Answer:
        """What the live student answers on the teacher's prompts."""
        share = self.config.shares_prompts("student")
        return answer(student, batch, "teacher_", share_prompts=share)

    def own(self, student: nn.Module, batch: Batch, answer: Callable[..., Answer]) -> Answer:
        """What the stored weights answer: `response_logits` or `response_projection`."""
        return answer(self.module, batch, "teacher_")

    def update(self, student: nn.Module, *, stepped: bool = True) -> None:
        """Follow the student, once per update; nothing moves if no optimizer step was taken."""
        teacher_update(
            self.parameters(),
            self.student_parameters(student),
            teacher_regularization=self.config.teacher_regularization,
            teacher_update_rate=self.config.teacher_update_rate,
            stepped=stepped,
        )

    def state_dict(self) -> dict[str, Tensor]:
        """The weights by name, for a checkpoint."""
        tensors = zip(self.names, self.parameters(), strict=True)
        return {name: tensor.detach().contiguous().cpu() for name, tensor in tensors}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore weights saved by `state_dict`.

        Raises:
            ValueError: other names or shapes.
        """
        own = dict(zip(self.names, self.parameters(), strict=True))
        shapes = {name: tensor.shape for name, tensor in own.items()}
        if shapes != {name: tensor.shape for name, tensor in state.items()}:
            odd = sorted(own.keys() ^ state.keys()) or "the same names with other shapes"
            raise ValueError(
                f"the saved teacher does not fit this model (differing: {odd}): resume with the "
                "model and the teacher_mode that the checkpoint was written with"
            )
        for name, tensor in own.items():
            tensor.copy_(state[name])


def at_rows_with_signal(batch: Batch, answer: Callable[[Batch], Tensor]) -> Tensor:
    """What rows with a teacher prompt are answered, at their places; zeros at the others.

    Without `self_distillation_mask` every row has one.
    """
    if "self_distillation_mask" not in batch or (batch["self_distillation_mask"] != 0).all():
        return answer(batch)
    mask = batch["self_distillation_mask"] != 0
    found = answer(rows_with_signal(batch))
    whole = found.new_zeros(len(mask), *found.shape[1:])
    if mask.any():
        whole[mask] = found
    return whole


class AdapterTeacher(CopyTeacher):
    """A teacher that shares the student's base model and has an adapter of its own.

    Averaging the factors A and B is not averaging the weights B·A: with the gaps ΔA, ΔB between
    student and teacher one step differs by `-rate (1 - rate) ΔB ΔA`. `lora_average="effective"`
    averages the products instead, see `EffectiveTeacher`.
    """

    def __init__(self, model: Any, config: SDPOConfig):
        self.config = config
        self.student_adapter = model.active_adapter
        trained = [name for name, p in model.named_parameters() if p.requires_grad]
        add_adapter(model, TEACHER_ADAPTER, self.student_adapter)
        own, place = dict(model.named_parameters()), f".{self.student_adapter}"
        names = [name for name in trained if place in name]
        if len(names) != len(trained):
            odd = sorted(set(trained) - set(names))
            raise ConfigError(
                f"weights outside the adapter {self.student_adapter!r} are trained ({odd[:3]}…), "
                "which a teacher adapter cannot hold: freeze them, or train without PEFT"
            )
        self.names = names
        self.own_names = [name.replace(place, f".{TEACHER_ADAPTER}") for name in names]
        self.model = model
        with torch.no_grad():
            for name, mine in zip(self.names, self.own_names, strict=True):
                own[mine].copy_(own[name])
        # TRL turns the adapters of quantized models to bfloat16, in which an average stalls.
        self.masters = [own[mine].detach().float().clone() for mine in self.own_names]

    def parameters(self) -> list[Tensor]:
        """The averaged factors, in float32."""
        return self.masters

    def update(self, student: nn.Module, *, stepped: bool = True) -> None:
        """Follow the student, and put the averages into the teacher's adapter."""
        super().update(student, stepped=stepped)
        self.refresh()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the averages, and put them into the teacher's adapter."""
        super().load_state_dict(state)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the averages to the weights that answer."""
        own = dict(self.model.named_parameters())
        for name, master in zip(self.own_names, self.masters, strict=True):
            own[name].copy_(master)

    def own(self, student: nn.Module, batch: Batch, answer: Callable[..., Answer]) -> Answer:
        """What the base model answers with the teacher's adapter."""
        with active_adapter(self.model, TEACHER_ADAPTER):
            return answer(student, batch, "teacher_")


class EffectiveTeacher(CopyTeacher):
    """A LoRA teacher whose effective weights, not factors, are averaged.

    Keeps `B·A` of the average as one dense float32 matrix for each adapted layer: exact, at the
    memory of those layers' weights.
    """

    def __init__(self, model: Any, config: SDPOConfig):
        self.config = config
        self.model = model
        self.student_adapter = model.active_adapter
        self.layers = lora_layers(model, self.student_adapter)
        self.names = list(self.layers)
        self.deltas = self.student_parameters(model)

    def parameters(self) -> list[Tensor]:
        """The averaged `B·A` of each layer, `(out, in)` float32."""
        return self.deltas

    @torch.no_grad()
    def student_parameters(self, model: nn.Module) -> list[Tensor]:
        """The student's `B·A` of each layer."""
        layers = self.layers.values()
        return [layer.get_delta_weight(self.student_adapter).float() for layer in layers]

    def own(self, student: nn.Module, batch: Batch, answer: Callable[..., Answer]) -> Answer:
        """What the base model answers with the averaged matrices added.

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
                found = answer(student, batch, "teacher_")
        finally:
            for hook in hooks:
                hook.remove()
        if not ran:
            raise ConfigError(
                "lora_average='effective' adds its averages to the outputs of the adapted layers, "
                "but none of them was called (Unsloth's kernels read their weights instead): use "
                "lora_average='factors'"
            )
        return found


def lora_layers(model: Any, adapter: str) -> dict[str, Any]:
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


Teacher = CopyTeacher | EffectiveTeacher


def build_teacher(model: nn.Module, config: SDPOConfig) -> Teacher:
    """The teacher that the settings ask for, with the student's present weights.

    Raises:
        ConfigError: `lora_ema` for a model without PEFT adapters, or a quantized model without.
    """
    adapters = hasattr(model, "peft_config")
    if config.teacher_mode == "lora_ema" and not adapters:
        raise ConfigError(
            f"teacher_mode='lora_ema' needs a PEFT model, but this is a plain "
            f"{type(model).__name__}: wrap it with peft.get_peft_model or pass peft_config, or use "
            "teacher_mode='ema'"
        )
    quantized = any(getattr(model, f"is_loaded_in_{bits}bit", False) for bits in (4, 8))
    if quantized and not adapters:
        raise ConfigError(
            "the model is quantized and has no PEFT adapter, so nothing of it can be trained or "
            "averaged: pass peft_config (QLoRA), or load it unquantized"
        )
    if config.lora_average == "effective":
        return EffectiveTeacher(model, config)
    return (AdapterTeacher if adapters else CopyTeacher)(model, config)


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


def warn_if_stalling(parameters: list[Tensor], config: SDPOConfig) -> None:
    """Say so if the average would stand still in the dtype of its weights."""
    rate, averaged = config.teacher_update_rate, config.teacher_regularization == "ema"
    for dtype in {parameter.dtype for parameter in parameters if averaged}:
        if ema_stalls(dtype, rate):
            warnings.warn(
                f"the teacher's weights are {dtype} and follow at rate {rate}: steps below a unit "
                "in the last place round away, so the teacher stays behind the student; load the "
                "model in float32 (with bf16=True for the computation)",
                TeacherWarning,
                stacklevel=3,
            )
