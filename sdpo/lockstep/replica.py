"""A second copy of a training's state, for the reference to train on.

A `State` holds numbers only; a `Replica` has modules and an optimizer of its own and can be loaded
with a `State` again and again. Nothing here knows of TRL.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from sdpo.lockstep.lora_reference_teacher import DenseTeacher, tensors_of

Weights = dict[str, Tensor]
Moments = dict[str, Tensor | float]
"""What an optimizer remembers of one weight, by name."""
ParameterGroups = list[dict[str, Any]]
"""As torch's optimizers hold them: `params`, and the settings of these by name."""


def weights_of(module: nn.Module, *, copied: bool = True) -> Weights:
    """Collect the trained weights by name; copies of them, or themselves."""
    named = [(name, p.detach()) for name, p in module.named_parameters() if p.requires_grad]
    return {name: p.clone() if copied else p for name, p in named}


def refreshed(old: Weights | None, new: Mapping[str, Tensor]) -> Weights:
    """Copy tensors, into older copies where they fit: fresh memory costs more than copying."""
    fits = old is not None and all(n in old and old[n].shape == t.shape for n, t in new.items())
    if old is None or not fits:
        return {name: tensor.detach().clone() for name, tensor in new.items()}
    return {name: old[name].copy_(tensor.detach()) for name, tensor in new.items()}


@dataclass
class State:
    """Copies of the student's trained weights, the teacher's, and the optimizer's state.

    All are filed under the student's names.
    """

    student: Weights
    teacher: Weights
    optimizer: dict[str, Moments]

    @classmethod
    def of(
        cls,
        student: nn.Module,
        teacher: Mapping[str, Tensor],
        optimizer: "torch.optim.Optimizer | OneByOne",
        *,
        into: "State | None" = None,
    ) -> "State":
        """Copy a training state.

        Args:
            student: the live model.
            teacher: the teacher's weights under the student's names.
            optimizer: the live optimizer, over parameters of `student`.
            into: an older copy that is not needed any more.
        """
        old = into or cls({}, {}, {})
        named = dict(student.named_parameters())
        memories = {n: optimizer.state[p] for n, p in named.items() if p in optimizer.state}
        return cls(
            refreshed(old.student, weights_of(student, copied=False)),
            refreshed(old.teacher, teacher),
            {n: _copied_moments(values, old.optimizer.get(n)) for n, values in memories.items()},
        )

    def flat(self, prefix: str) -> dict[str, Tensor]:
        """Put all tensors under names of one level, for a file; see `from_flat`."""
        flat = {f"{prefix}:student:{name}": tensor for name, tensor in self.student.items()}
        flat |= {f"{prefix}:teacher:{name}": tensor for name, tensor in self.teacher.items()}
        for name, moments in self.optimizer.items():
            flat |= {
                f"{prefix}:optimizer:{name}:{key}": torch.as_tensor(value)
                for key, value in moments.items()
            }
        return {name: tensor.contiguous().cpu() for name, tensor in flat.items()}

    @classmethod
    def from_flat(cls, tensors: Mapping[str, Tensor], prefix: str) -> "State":
        """Invert `flat`."""
        state = cls({}, {}, {})
        for place, tensor in tensors.items():
            owner, part, *name = place.split(":")
            if owner == prefix and part == "optimizer":
                state.optimizer.setdefault(name[0], {})[name[1]] = tensor
            elif owner == prefix:
                getattr(state, part)[name[0]] = tensor
        return state


def _copied_moments(values: Moments, old: Moments | None) -> Moments:
    """Copy what an optimizer remembers of one weight, into older memory where it fits."""
    old, copied = old or {}, {}
    for name, value in values.items():
        before = old.get(name)
        if (
            isinstance(value, Tensor)
            and isinstance(before, Tensor)
            and (before.shape, before.dtype) == (value.shape, value.dtype)
        ):
            copied[name] = before.copy_(value)
        else:
            copied[name] = copy.deepcopy(value)
    return copied


@dataclass
class Replica:
    """Student, teacher and optimizer of the candidate's kinds, with weights of their own.

    `dtype` is that of logits and losses. Frozen weights are shared with the candidate's model.
    """

    student: nn.Module
    teacher: nn.Module
    optimizer: "torch.optim.Optimizer | OneByOne"
    dtype: torch.dtype
    gradients: dict[int, Weights] = field(default_factory=dict)
    """Memory for the gradients of each optimizer step."""

    def answers(self, width: int) -> None:
        """Let both compute logits for responses of this width only, where the model can.

        Not under autocast: another shape of a bfloat16 product may round otherwise.
        """
        for module in (self.student, getattr(self.teacher, "whole", self.teacher)):
            vars(module)["response_width"] = width

    @classmethod
    def like(
        cls,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        exact: bool = False,
        autocast: torch.dtype | None = None,
        prepare: Callable[[nn.Module], None] = lambda student: None,
        effective: bool = False,
    ) -> "Replica":
        """Build a replica; `load` gives it a state.

        Args:
            model: the live student.
            optimizer: the live optimizer.
            exact: compute in float64. Under autocast the forward pass keeps the candidate's
                rounding, because it is the same on both sides; everything behind it is float64.
            autocast: the forward passes' dtype in mixed precision.
            prepare: gives the student's copy what was given to the live one.
            effective: the teacher averages what LoRA adapters add to weights, not their factors.
        """
        widened = exact and autocast is None
        student, teacher = (_twin_of(model, share_frozen=not widened) for _ in range(2))
        prepare(student)
        dtype = torch.float64 if exact else next(model.parameters()).dtype
        for module in (student, teacher):
            if widened:
                module.to(torch.float64)
                # The eager kernel's softmax is float32 whatever the weights are, and float64's
                # least number, which masks with it, is infinite there: rows of padding become NaN.
                module.set_attn_implementation("sdpa")  # pyright: ignore[reportCallIssue]
            if autocast is not None:
                dtype = torch.float64 if exact else torch.float32
                _answer_in(module, dtype, autocast)
            elif _can_answer_shortly(module):
                _answer_shortly(module)
        parameters = dict(student.named_parameters())
        kind = OneByOne if widened else type(optimizer)
        twin: Any = kind(_twin_groups(optimizer, model, parameters))  # pyright: ignore[reportCallIssue]
        if isinstance(twin, OneByOne):
            twin.kind = type(optimizer)
        if effective:
            teacher = DenseTeacher(teacher, student)
        return cls(student, teacher.eval(), twin, dtype)

    @torch.no_grad()
    def load(self, state: State) -> "Replica":
        """Take over weights and the optimizer's state."""
        for module, weights in ((self.student, state.student), (self.teacher, state.teacher)):
            tensors = tensors_of(module)
            for name, tensor in weights.items():
                tensors[name].copy_(tensor)
        parameters = dict(self.student.named_parameters())
        before = dict(self.optimizer.state)
        self.optimizer.state.clear()
        for name, values in state.optimizer.items():
            shared = isinstance(self.optimizer, OneByOne)  # it does not write into them
            copied = values if shared else _copied_moments(values, before.get(parameters[name]))
            self.optimizer.state[parameters[name]] = copied
        return self

    def teacher_weights(self, names: Iterable[str]) -> Weights:
        """Give the teacher's own tensors of some names."""
        tensors = tensors_of(self.teacher)
        return {name: tensors[name].detach() for name in names}


def _twin_of(model: nn.Module, *, share_frozen: bool) -> nn.Module:
    """Copy a model, without gradients; weights that are not trained may be shared with it.

    A `forward` that was put on a live module holds that module and would answer with its weights:
    the copy has the one of its class. Nothing of this is shared with the trainer that is judged.
    """
    replaced = {m: vars(m).pop("forward") for m in model.modules() if "forward" in vars(m)}
    frozen = {id(p): p for p in model.parameters() if share_frozen and not p.requires_grad}
    try:
        return copy.deepcopy(model, frozen)  # of a parameter this takes no gradient along
    finally:
        for module, forward in replaced.items():
            module.forward = forward


def _can_answer_shortly(module: Any) -> bool:
    """Tell whether a model, inside PEFT or not, can leave out logits of the prompt."""
    model = module.get_base_model() if hasattr(module, "get_base_model") else module
    return "logits_to_keep" in signature(model.forward).parameters


def _twin_groups(
    optimizer: torch.optim.Optimizer, model: nn.Module, parameters: Mapping[str, Tensor]
) -> ParameterGroups:
    """Copy an optimizer's groups, over other parameters.

    A learning-rate schedule replaces `step` on the live instance by a function that holds it, so
    that the optimizer itself cannot be copied.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [
        {**group, "params": [parameters[names[parameter]] for parameter in group["params"]]}
        for group in optimizer.param_groups
    ]


class OneByOne:
    """Steps float64 weights one after the other, with moments widened only while they are needed.

    Widened all at once they would be the greater part of a float64 replica's memory. `steps` is how
    many steps an update takes: after the last one nothing is kept.
    """

    kind: Any = torch.optim.AdamW
    steps = 1

    def __init__(self, groups: ParameterGroups):
        self.param_groups = groups
        self.state: dict[Tensor, Moments] = {}

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def step(self) -> None:
        """Step every parameter that has a gradient."""
        self.steps -= 1
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                single = self.kind([{**group, "params": [parameter]}])
                if before := self.state.pop(parameter, None):
                    single.state[parameter] = {n: _widened(v) for n, v in before.items()}
                single.step()
                if self.steps:
                    self.state[parameter] = single.state[parameter]


def _widened(value: Tensor | float) -> Tensor | float:
    """Widen a moment to float64; counters stay as they are."""
    if isinstance(value, Tensor) and value.is_floating_point() and value.dim():
        return value.double()
    return copy.deepcopy(value)


def _answer_shortly(module: Any) -> None:
    """Let a model leave out the logits of the prompt, which the loss does not look at."""
    forward = module.forward

    def shortly(*args: Any, **kwargs: Any) -> Any:
        width = vars(module).get("response_width")
        if width is None or kwargs.get("fused_lm_head"):
            return forward(*args, **kwargs)
        return forward(*args, logits_to_keep=width + 1, **kwargs)

    module.forward = shortly


def _answer_in(module: Any, dtype: torch.dtype, autocast: torch.dtype) -> None:
    """Let a model compute under autocast and answer in another dtype, as accelerate does."""
    forward, device = module.forward, next(module.parameters()).device.type

    def under_autocast(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device, dtype=autocast):
            output = forward(*args, **kwargs)
        for name, value in output.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                output[name] = value.to(dtype)
        return output

    module.forward = under_autocast
